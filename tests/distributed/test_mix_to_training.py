"""A mixture search with real small runs, and a run on its blend: `mix run`, `mix fit --out`, `pretrain --blend`."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--seq-length", "128", "--global-batch-size", "4")


def call(*words: object, folder: Path) -> str:
    launched = ("RANK", "WORLD_SIZE", "LOCAL_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sources of other words each; the held-out text is three parts of `a` to one of `b`."""
    generator = random.Random(0)
    for name, number, letters in (("a", 450, "abcdefgh"), ("b", 150, "nopqrstu")):
        words = ["".join(generator.choices(letters, k=5)) for _ in range(60)]
        rows = [json.dumps({"text": " ".join(generator.choices(words, k=150))}) for _ in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    sources = ("--source", f"a={tmp_path / 'a.jsonl'}", f"b={tmp_path / 'b.jsonl'}", "--dedup", "exact")
    size = ("--vocab-size", "400", "--held-out-fraction", "0.1", "--workers", "1", "--out", tmp_path / "corpus")
    call("chinchilla_ds.cli.main", "prepare", *sources, *size, folder=tmp_path)
    return tmp_path / "corpus"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_differ_by_their_weights_alone_and_the_blend_trains(corpus: Path, tmp_path: Path) -> None:
    table, ds_config = tmp_path / "mixes.csv", ROOT / "ds_configs/zero1.json"
    table.write_text("run,weight:a,weight:b\nonly-a,1,0\nboth,0.75,0.25\nonly-b,0,1\n")
    where = ("--corpus", corpus, "--ds_config", ds_config, "--max-epochs", 20)
    budget = ("--flops", "6e10", *FEW)
    call("chinchilla_ds.cli.main", "mix", "run", table, *where, *budget, folder=tmp_path)
    losses = {row["run"]: float(row["loss"]) for row in csv.DictReader(table.read_text().splitlines())}
    assert losses["both"] < losses["only-a"] < losses["only-b"]  # a is three quarters of the held-out text
    (tmp_path / "blend.yaml").write_text("weights: {a: 0.75, b: 0.25}")
    text = call(
        "chinchilla_ds.cli.pretrain", "--ds_config", ds_config, "--data", corpus, "--blend", tmp_path / "blend.yaml",
        "--max-epochs", 20, *budget, "--output", tmp_path / "runs", folder=tmp_path,
    )  # fmt: skip
    (metrics,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [row["held_out/loss"] for row in rows if "held_out/loss" in row][-1]
    assert last == pytest.approx(losses["both"], abs=1e-5)  # the same run, by another road
    assert "blended" in text
