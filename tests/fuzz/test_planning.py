"""Files and flags of the commands that plan: plans, laws, hardware, DeepSpeed JSON, tables of runs."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import load_ds_config, resolve
from chinchilla_ds.runs.plan_file import read_plan
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import csv_files, damaged, json_files
from tests.fuzz.outcome import accepted, ends_well, put


def _numbers(value: Any) -> Iterator[float]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def test_plan_files(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    seed = (seeds / "plan.json").read_bytes()

    def try_one(content: bytes) -> None:
        path = put(tmp_path / "plan.json", content)
        if accepted(lambda: read_plan(path)):
            plan = read_plan(path)
            assert all(math.isfinite(number) for number in _numbers(plan))
            assert plan.num_tokens == plan.batch.train_iters * plan.tokens_per_iter
            assert plan.optimizer.learning_rate > 0
            assert ends_well(["memory", str(path)])
            assert ends_well(["ds-config", str(path)])
        else:
            assert not ends_well(["memory", str(path)])

    fuzz(try_one, json_files(seed))


def test_law_files(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    def try_one(content: bytes) -> None:
        path = str(put(tmp_path / "law.json", content))
        ends_well(["plan", "--flops", "1e18", "--law", path])
        ends_well(["laws", "--flops", "1e18", "--law", path])

    fuzz(try_one, json_files((seeds / "law.json").read_bytes()))


def test_hardware_files(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    def try_one(content: bytes) -> None:
        path = str(put(tmp_path / "hardware.json", content))
        ends_well(["plan", "--flops", "1e20", "--gpus", "8", "--gpu", "x100", "--hardware", path])

    fuzz(try_one, json_files((seeds / "hardware.json").read_bytes()))


@pytest.mark.parametrize("name", ["zero1.json", "zero3.json", "zero3_offload.json", "everything.json"])
def test_deepspeed_files(fuzz: Fuzz, seeds: Path, tmp_path: Path, name: str) -> None:
    plan = read_plan(seeds / "plan.json")

    def try_one(content: bytes) -> None:
        path = put(tmp_path / "ds.json", content)
        accepted(lambda: resolve(load_ds_config(path), plan))

    fuzz(try_one, json_files((seeds / "ds_configs" / name).read_bytes()))


def test_tables_of_runs(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    def try_one(content: bytes) -> None:
        ends_well(["fit", str(put(tmp_path / "runs.csv", content)), "--prior", "none", "--bootstrap", "0"])
        ends_well(["fit", str(tmp_path / "runs.csv"), "--predict", "7B,140B", "--hold-out", "4x"])

    fuzz(try_one, csv_files((seeds / "runs.csv").read_bytes()), share=0.3)


@pytest.mark.parametrize("name", ["runs.json", "runs.jsonl", "runs.parquet"])
def test_tables_of_runs_as_records(fuzz: Fuzz, seeds: Path, tmp_path: Path, name: str) -> None:
    with (seeds / "runs.csv").open(encoding="utf-8") as lines:
        records = [{column: float(text) for column, text in row.items()} for row in csv.DictReader(lines)]
    if name.endswith(".parquet"):
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
        contents = damaged(buffer.getvalue().to_pybytes())
    elif name.endswith(".jsonl"):
        contents = damaged("".join(f"{json.dumps(record)}\n" for record in records).encode())
    else:
        contents = json_files(json.dumps(records).encode())

    def try_one(content: bytes) -> None:
        ends_well(["fit", str(put(tmp_path / name, content)), "--bootstrap", "0"])

    fuzz(try_one, contents, share=0.1)


def test_tables_of_curves(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    def try_one(content: bytes) -> None:
        ends_well(["fit-curves", str(put(tmp_path / "curve.csv", content)), "--predict", str(seeds / "linear.csv")])

    fuzz(try_one, csv_files((seeds / "cosine.csv").read_bytes()), share=0.3)


def test_tables_of_mixtures(fuzz: Fuzz, seeds: Path, tmp_path: Path) -> None:
    def try_one(content: bytes) -> None:
        ends_well(["mix", "fit", str(put(tmp_path / "mixtures.csv", content)), "--out", str(tmp_path / "blend.yaml")])

    fuzz(try_one, csv_files((seeds / "mixtures.csv").read_bytes()), share=0.3)
