# ruff: noqa: RUF001 (characters that look alike are what these tests are about)
"""Texts in many languages through `prepare` with its defaults and back: not a byte is lost or changed."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from tests.unit.data.languages import LANGUAGES

TEXTS = [text for texts in LANGUAGES.values() for text in texts]


def prepared(folder: Path, texts: list[str], *flags: str) -> list[str]:
    """Prepare texts by the command and return what the tokens of train and held-out decode to."""
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    command = ["prepare", "--source", str(source), "--out", str(folder / "out"), "--vocab-size", "600"]
    assert main([*command, "--workers", "1", *flags]) == 0
    found = PreparedData.load(folder / "out")
    tokenizer = Tokenizer.load(found.tokenizer_path)
    datasets = [IndexedDataset(str(prefix)) for prefix in (found.train_prefix, found.held_out_prefix)]
    return [tokenizer.decode(one[index].tolist()) for one in datasets for index in range(len(one))]


def test_twenty_languages_come_back_byte_by_byte(tmp_path: Path) -> None:
    assert len(LANGUAGES) >= 20
    assert {"Chinese", "Japanese", "Thai", "Hindi", "Arabic", "Vietnamese"} <= LANGUAGES.keys()
    assert sum(text != unicodedata.normalize("NFC", text) for text in TEXTS) >= 5  # so that a form would be seen
    assert sorted(prepared(tmp_path, TEXTS)) == sorted(TEXTS)


def test_two_ways_to_write_one_chinese_text_are_near_duplicates(tmp_path: Path) -> None:
    (text,) = (text for text in LANGUAGES["Chinese"] if "船夫" in text)
    other = text.translate(str.maketrans("，。：“”", ',.:""')).replace(",", ", ")
    assert len(prepared(tmp_path, [text, other, LANGUAGES["Russian"][0]], "--held-out-fraction", "0.3")) == 2


def test_short_articles_are_kept_and_the_message_names_rule_and_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [text[:30] for text in LANGUAGES["Chinese"]] + [text[:30] for text in LANGUAGES["Japanese"]]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in short), encoding="utf-8")
    command = ["prepare", "--source", str(source), "--out", str(tmp_path / "all"), "--vocab-size", "600"]
    assert main([*command, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "of 4 documents read, 4 dropped by min_length (fewer than 200 characters" in said
    assert "--min-length" in said
    assert sorted(prepared(tmp_path, short, "--min-length", "80")) == sorted(short)
    assert main([*command, "--min-length", "80", "--clean", "nfc"]) == 2
    assert "--min-length 80 has no effect without the cleaning rule min_length" in capsys.readouterr().err


def test_a_document_with_a_benchmark_question_goes_and_what_is_too_short_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted, clean, other = (LANGUAGES[language][0] for language in ("Chinese", "Thai", "Korean"))
    short = "只有七个字呀"
    questions = [planted[20:45].translate(str.maketrans("，。", ",.")), "首都是哪里？"]
    benchmark = tmp_path / "test.json"
    benchmark.write_text(json.dumps([{"question": question} for question in questions]), encoding="utf-8")
    flags = ("--decontaminate", str(benchmark), "--min-length", "0", "--held-out-fraction", "0.1")
    assert sorted(prepared(tmp_path, [planted, clean, other, short], *flags)) == sorted([clean, other, short])
    said = capsys.readouterr().out
    assert re.search(r"dropped: benchmark_overlap +1 docs", said)
    assert re.search(r"too short for benchmarks +1 docs", said)
    assert "2 texts; 1 of them cannot be found: they have fewer than 13 words (in scripts without spaces" in said
