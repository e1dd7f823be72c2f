"""Overlaps of word runs: against a naive search, planted passages, unrelated text."""

import json
import random
import re
from pathlib import Path

import pytest

from chinchilla_ds.data.decontamination import Contamination, read_benchmarks
from chinchilla_ds.errors import DataError


def words(number: int, *, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefghij", k=6)) for _ in range(number)]


def test_a_planted_passage_is_found_whatever_its_case_and_punctuation() -> None:
    question = words(30, seed=1)
    contamination = Contamination([" ".join(question)])
    passage = ", ".join(word.capitalize() for word in question[5:19]) + "!"
    document = " ".join(words(100, seed=2)) + "\n" + passage + "\n" + " ".join(words(100, seed=3))
    assert contamination.overlap(document) == (" ".join(question[5:18]), " ".join(question[6:19]))


def test_twelve_words_are_not_enough() -> None:
    question = words(30, seed=1)
    document = " ".join(words(50, seed=2) + question[:12] + words(50, seed=3))
    assert Contamination([" ".join(question)]).overlap(document) == ()
    assert len(Contamination([" ".join(question)], n=12).overlap(document)) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_matches_the_naive_search_over_few_words(n: int) -> None:
    generator = random.Random(n)
    vocabulary = ["the", "cat", "Élan", "数据", "x1", "don't", "naïve"]  # few words: many true overlaps
    texts = [" ".join(generator.choices(vocabulary, k=generator.randint(0, 12))) for _ in range(60)]
    contamination = Contamination(texts[:10], n=n)

    def runs(text: str) -> list[str]:
        parts = re.sub(r"'", " ", text.lower()).split()
        return [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]

    known = {run for text in texts[:10] for run in runs(text)}
    assert contamination.num_runs == len(known)
    assert contamination.num_short == sum(not runs(text) for text in texts[:10])
    overlaps = [contamination.overlap(text) for text in texts]
    assert overlaps == [tuple(run for run in runs(text) if run in known) for text in texts]
    assert any(overlaps[10:])
    assert not all(overlaps[10:])


def test_no_false_positive_on_unrelated_text() -> None:
    contamination = Contamination(" ".join(words(200, seed=seed)) for seed in range(50))
    assert contamination.num_runs == 50 * 188
    assert all(contamination.overlap(" ".join(words(500, seed=seed))) == () for seed in range(100, 200))


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


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{broken\n', encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_benchmarks([tmp_path / name for name in ("a.jsonl", "b.txt", "c.txt", "d.txt")]))
    problems = caught.value.problems
    assert [str(tmp_path / name) in problem for name, problem in zip("abcd", problems, strict=True)] == [True] * 4
    assert "a.jsonl:2: no JSON" in problems[0]
    assert "byte 3 is 0xff" in problems[1]
    assert "is empty" in problems[2]
