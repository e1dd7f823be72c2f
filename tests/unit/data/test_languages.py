"""Texts in many languages through `prepare` with its defaults and back: not a byte is lost or changed."""

import json
import unicodedata
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.tokenizer import Tokenizer
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
