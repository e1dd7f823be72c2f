"""Text files of every kind, recipes, blends and prepared folders."""

import bz2
import csv
import gzip
import io
import json
import lzma
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chinchilla_ds.data.feeding.blend_file import read_blend
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.preparing.recipe import load_recipe
from chinchilla_ds.data.reading.parts import Problem
from chinchilla_ds.data.reading.readers import parts_of, read_part
from chinchilla_ds.data.reading.sources import find_source
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import damaged, json_files, yaml_files
from tests.fuzz.outcome import accepted, ends_well, put
from tests.unit.data.conftest import make_documents

TEXTS = make_documents(number=12)
PART_BYTES = 1 << 20


def _csv() -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([["id", "text"], *([str(index), one] for index, one in enumerate(TEXTS))])
    return text.getvalue().encode()


def _parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS, "id": list(range(len(TEXTS)))}), content)
    return content.getvalue()


JSONL = "".join(json.dumps({"id": index, "text": one, "meta": {"a": [1]}}) + "\n" for index, one in enumerate(TEXTS))
FILES = {
    "plain.txt": "\n\n".join(TEXTS).encode(),
    "rows.jsonl": JSONL.encode(),
    "array.json": json.dumps([{"text": one} for one in TEXTS]).encode(),
    "rows.csv": _csv(),
    "rows.parquet": _parquet(),
    "rows.jsonl.gz": gzip.compress(JSONL.encode(), mtime=0),
    "rows.jsonl.bz2": bz2.compress(JSONL.encode()),
    "rows.jsonl.xz": lzma.compress(JSONL.encode()),
    "rows.jsonl.zst": zstandard.compress(JSONL.encode()),
    "no_suffix": JSONL.encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_text_files(fuzz: Fuzz, tmp_path: Path, name: str) -> None:
    def read() -> None:
        for file in find_source([str(tmp_path / name)], text_field="text").files:
            for part in parts_of(file, text_field="text", part_bytes=PART_BYTES):
                for found in read_part(part):
                    if isinstance(found, Problem):
                        assert found.message
                        assert "\n" not in found.message
                    else:
                        bytes(found).decode()

    def try_one(content: bytes) -> None:
        put(tmp_path / name, content)
        accepted(read)

    fuzz(try_one, damaged(FILES[name]), share=0.5)


RECIPE = b"""
seed: 7
vocab_size: 500
dedup: fineweb
sources:
  - name: web
    paths: [web/*.jsonl]
    text_field: text
    weight: 0.7
  - name: code
    paths: [code.jsonl]
    weight: 0.3
    max_epochs: 2
"""
BLEND = b"weights:\n  web: 0.7\n  code: 0.2\n  books: 1e-1\n"


def test_recipes(fuzz: Fuzz, tmp_path: Path) -> None:
    fuzz(lambda content: accepted(lambda: load_recipe(put(tmp_path / "recipe.yaml", content))), yaml_files(RECIPE))


def test_blends(fuzz: Fuzz, tmp_path: Path) -> None:
    def read(path: Path) -> None:
        weights = read_blend(path)
        assert weights
        assert all(0 < weight < float("inf") for weight in weights.values())

    fuzz(lambda content: accepted(lambda: read(put(tmp_path / "blend.yaml", content))), yaml_files(BLEND))


@pytest.mark.parametrize(
    "name", ["manifest.json", "ledger.json", "tokenizer.model", "train-corpus.idx", "train-corpus.bin"]
)
def test_prepared_folders(fuzz: Fuzz, corpus: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    seed = (folder / name).read_bytes()

    def read() -> None:
        prepared = PreparedData.load(folder)
        prepared.check_content()

    def try_one(content: bytes) -> None:
        put(folder / name, content)
        if accepted(read) and name.startswith("train"):
            assert content == seed, "changed tokens were taken"
        ends_well(["mix", "design", str(folder), "--out", str(tmp_path / "design.csv")])

    fuzz(try_one, json_files(seed) if name.endswith(".json") else damaged(seed), share=0.5)
