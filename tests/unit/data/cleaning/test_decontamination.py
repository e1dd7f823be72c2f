# ruff: noqa: RUF001 (characters that look alike are what these tests are about)
"""Overlaps of word runs: against a naive search, planted passages, unrelated text."""

import json
import os
import random
import re
import unicodedata
from pathlib import Path

import pytest

from chinchilla_ds.data.cleaning.decontamination import Contamination, read_benchmarks, read_contamination
from chinchilla_ds.errors import DataError
from tests.unit.data.languages import LANGUAGES


def words(number: int, *, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefghij", k=6)) for _ in range(number)]


def test_a_planted_passage_is_found_whatever_its_case_and_punctuation() -> None:
    question = words(30, seed=1)
    contamination = Contamination([" ".join(question)])
    passage = ", ".join(word.capitalize() for word in question[5:19]) + "!"
    document = " ".join(words(100, seed=2)) + "\n" + passage + "\n" + " ".join(words(100, seed=3))
    assert contamination.overlap(document).runs == (" ".join(question[5:18]), " ".join(question[6:19]))


def test_twelve_words_are_not_enough() -> None:
    question = words(30, seed=1)
    document = " ".join(words(50, seed=2) + question[:12] + words(50, seed=3))
    assert Contamination([" ".join(question)]).overlap(document).runs == ()
    assert len(Contamination([" ".join(question)], n=12).overlap(document).runs) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_matches_the_naive_search_over_few_words(n: int) -> None:
    generator = random.Random(n)
    vocabulary = ["the", "cat", "Élan", "数据", "x1", "don't", "naïve"]  # few words: many true overlaps
    texts = [" ".join(generator.choices(vocabulary, k=generator.randint(0, 12))) for _ in range(60)]
    contamination = Contamination(texts[:10], n=n)

    def runs(text: str) -> list[str]:
        parts = re.sub(r"([数据])", r" \1 ", re.sub(r"'", " ", text.lower())).split()
        return [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]

    known = {run for text in texts[:10] for run in runs(text)}
    assert contamination.num_runs == len(known)
    assert contamination.num_short == sum(not runs(text) for text in texts[:10])
    overlaps = [contamination.overlap(text).runs for text in texts]
    assert overlaps == [tuple(run for run in runs(text) if run in known) for text in texts]
    assert any(overlaps[10:])
    assert not all(overlaps[10:])


def test_no_false_positive_on_unrelated_text() -> None:
    contamination = Contamination(" ".join(words(200, seed=seed)) for seed in range(50))
    assert contamination.num_runs == 50 * 188
    assert all(contamination.overlap(" ".join(words(500, seed=seed))).runs == () for seed in range(100, 200))


def test_reads_text_and_every_string_of_jsonl(tmp_path: Path) -> None:
    record = {"question": "What?", "choices": ["a\n\u2028b", {"text": "c"}], "answer": 3}
    (tmp_path / "a.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("two\nlines", encoding="utf-8")
    assert list(read_benchmarks([tmp_path / "a.jsonl", tmp_path / "b.txt"])) == [
        "What?",
        "a\n\u2028b",
        "c",
        "two\nlines",
    ]


QUESTIONS = {
    "Chinese": "下列哪一项最能说明光合作用在植物生长过程中的主要作用是什么",
    "Japanese": "次のうち、光合成のはたらきを最もよく説明しているものはどれですか",
    "Thai": "ข้อใดต่อไปนี้อธิบายบทบาทของการสังเคราะห์ด้วยแสงได้ดีที่สุด",
    "Lao": "ຂໍ້ໃດຕໍ່ໄປນີ້ອະທິບາຍບົດບາດຂອງການສັງເຄາະແສງໄດ້ດີທີ່ສຸດ",
    "Khmer": "តើមួយណាពន្យល់បានល្អបំផុតអំពីតួនាទីរបស់រស្មីសំយោគ",
    "Burmese": "အောက်ပါတို့မှမည်သည်ကအလင်းမှီစုဖွဲ့ခြင်းကိုအကောင်းဆုံးရှင်းပြသနည်း",
    "Tibetan": "འོད་སྦྱོར་གྱི་ནུས་པ་གསལ་པོར་བཤད་ཡོད་པ་དེ་གང་རེད།",
    "Korean": "다음 중 광합성이 식물의 성장 과정에서 맡는 가장 중요한 역할을 바르게 설명한 것은 무엇인지 모두 고르시오",
}


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_question_within_text_is_found_in_scripts_without_spaces(language: str) -> None:
    contamination = Contamination([QUESTIONS[language]])
    around = LANGUAGES[language][0]
    assert contamination.num_short == 0
    assert contamination.overlap(around).runs == ()
    assert contamination.overlap(f"{around[:60]}{QUESTIONS[language]}{around[60:]}").runs


def test_width_punctuation_spaces_and_composition_make_no_difference() -> None:
    question = "小明买了３个苹果，每个５元，一共花了多少钱？请写出计算过程。"
    contamination = Contamination([question, "Ngời ở đâu thì tình yêu ở đó, " * 3])
    for written in (
        question,
        "小明买了3个苹果,每个5元,一共花了多少钱?请写出计算过程.",
        "小明 买了 3 个 苹果，每个 5 元，\n一共花了多少钱？ 请写出计算过程。",
        "小明买了３个苹​果、每个５元。一共花了多少钱！",
        unicodedata.normalize("NFC", "NGỜI Ở ĐÂU THÌ TÌNH YÊU Ở ĐÓ " * 3),
    ):
        assert contamination.overlap(f"前文如下。{written}后文如下。").runs


def test_what_is_too_short_is_told(tmp_path: Path) -> None:
    found = Contamination(["法国的首都是哪里？", "What is the capital?", "x " * 13])
    assert (found.num_texts, found.num_short, found.num_runs) == (3, 2, 1)
    assert found.overlap("法国的首都是哪里？").is_too_short
    assert not found.overlap("x " * 13).is_too_short
    (tmp_path / "short.jsonl").write_text('{"q": "What is the capital?"}', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"none of the 1 texts in .*short\.jsonl has 13 words \(in scripts without spaces"
    ):
        read_contamination([tmp_path / "short.jsonl"])


def test_json_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    records = [{"question": "你好"}, {"question": "你\n好"}]
    (tmp_path / "list.json").write_text(json.dumps(records, indent=1), encoding="utf-8-sig")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "lines.ndjson").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    for name in ("list.json", "lines.json", "lines.ndjson"):
        assert list(read_benchmarks([tmp_path / name])) == ["你好", "你\n好"]
    (tmp_path / "broken.json").write_text('[\n"a"\n"b"\n]', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_benchmarks([tmp_path / "broken.json"]))
    assert len(caught.value.problems) == 1


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jsonl")
    with pytest.raises(DataError, match="it is not a regular file"):
        list(read_benchmarks([tmp_path / "fifo.jsonl"]))


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{broken\n', encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_benchmarks([tmp_path / name for name in ("a.jsonl", "b.txt", "c.txt", "d.txt")]))
    problems = caught.value.problems
    assert [str(tmp_path / name) in problem for name, problem in zip("abcd", problems, strict=True)] == [True] * 4
    assert "a.jsonl:2 is not JSON" in problems[0]
    assert "byte 3 is 0xff" in problems[1]
    assert "is empty" in problems[2]
