"""`chinchilla-ds mix` end to end: a design, losses of a known truth, the best mixture, and what is refused."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_ds.cli.main import run_command
from chinchilla_ds.data.prepared import MANIFEST_NAME, PreparedData, PreparedSource
from chinchilla_ds.errors import ChinchillaError, ConfigError, DataError, OutputError
from tests.unit.data.mixture.synthetic import random_truth

TOKENS = {"books": 30_000_000, "code": 60_000_000, "web": 400_000_000, "wiki": 10_000_000}
TRUTH = random_truth(num_sources=4, seed=5)


def run(*words: object) -> str:
    return run_command(["mix", *map(str, words)])


def refused(kind: type[ChinchillaError], *words: object) -> tuple[str, ...]:
    with pytest.raises(kind) as caught:
        run(*words)
    return caught.value.problems


def write_corpus(folder: Path, *, tokens: dict[str, int]) -> Path:
    folder.mkdir()
    sources = tuple(
        PreparedSource(name=name, weight=None, num_documents=1, num_bytes=4 * count, num_tokens=count)
        for name, count in tokens.items()
    )
    counts: dict[str, Any] = dict.fromkeys(
        ("held_out_tokens", "train_bytes", "held_out_bytes", "held_out_documents"), 1000
    )
    prepared = PreparedData(
        folder=folder,
        source="synthetic",
        sources=sources,
        tokenizer_sha256=hashlib.sha256(b"").hexdigest(),
        vocab_size=320,
        eod_id=0,
        train_tokens=sum(tokens.values()),
        num_documents=len(tokens),
        skipped_files=0,
        unigram_loss=5.0,
        **counts,
    )
    (folder / MANIFEST_NAME).write_text(prepared.to_json(), encoding="utf-8")
    (folder / "tokenizer.model").touch()
    for name, num_bytes in prepared.dataset_sizes().items():
        with (folder / name).open("wb") as stream:
            stream.truncate(num_bytes)  # a hole: it takes no room on the disk
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", tokens=TOKENS)


def add_losses(table: Path, *, order: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    """Write the table with a `loss` column, and its weight columns in another order."""
    header, *rows = csv.reader(table.read_text(encoding="utf-8").splitlines())
    weights = np.array([[float(field) for field in row[1:]] for row in rows])
    losses = TRUTH.noisy(weights, seed=1)
    done = table.with_name("done.csv")
    with done.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *(header[1 + index] for index in order), "loss"])
        for row, loss in zip(rows, losses, strict=True):
            writer.writerow([row[0], *(row[1 + index] for index in order), f"{loss:.5f}"])
    return done


@pytest.fixture
def done(corpus: Path, tmp_path: Path) -> Path:
    run("design", corpus, "--runs", 40, "--out", tmp_path / "mixes.csv")
    return add_losses(tmp_path / "mixes.csv")


def weights_of(blend: Path) -> dict[str, float]:
    """Read a blend by hand: names are JSON strings."""
    lines = blend.read_text(encoding="utf-8").splitlines()
    assert lines[1] == "weights:"
    found = [re.fullmatch(r'  (".*"): ([0-9.]+)', line) for line in lines[2:]]
    return {json.loads(line[1]): float(line[2]) for line in found if line}


def test_from_design_to_blend(corpus: Path, done: Path, tmp_path: Path) -> None:
    blend = tmp_path / "blend.yaml"
    data = json.loads(run("fit", done, "--corpus", corpus, "--out", blend, "--bootstrap", 30, "--json"))
    weights = weights_of(blend)
    assert weights == pytest.approx(data["best"])
    assert round(sum(weights.values()) * 10**6) == 10**6
    assert list(weights) == list(TOKENS)
    assert data["natural"] == pytest.approx({name: count / 5e8 for name, count in TOKENS.items()})
    loss = TRUTH.loss(np.array([list(weights.values())]))[0]
    assert loss / TRUTH.least() - 1 < 0.02
    assert data["is_better"] is True
    assert data["regressions"][data["chosen"]]["rank_correlation"] > 0.8
    low, high = data["gain"]["interval"]
    assert low < data["gain"]["value"] < high
    assert data["num_runs"] == 40


def test_the_screen_fits_and_says_the_same(done: Path) -> None:
    text = run("fit", done, "--bootstrap", 30)
    data = json.loads(run("fit", done, "--bootstrap", 30, "--json"))
    assert max(map(len, text.splitlines())) <= 120
    assert f"{data['loss']['value']:.4f}" in text
    assert f"{data['gain']['interval'][0]:.4f}" in text
    assert re.search(rf"^{data['chosen']} .*chosen$", text, re.MULTILINE)
    for name, weight in data["best"].items():
        assert re.search(rf"^{name} .*{weight:.4f}", text, re.MULTILINE)
    assert "better than the natural mixture" in text


def test_columns_may_stand_in_any_order(corpus: Path, done: Path, tmp_path: Path) -> None:
    words = ("--corpus", corpus, "--tokens", 1e9, "--bootstrap", 20, "--json")
    first = json.loads(run("fit", done, *words))
    other = json.loads(run("fit", add_losses(tmp_path / "mixes.csv", order=(3, 1, 0, 2)), *words))
    assert other["bounds"] == first["bounds"]
    assert other["best"] == pytest.approx(first["best"], abs=0.02)
    assert first["bounds"]["wiki"][1] == pytest.approx(0.04)
    assert all(first["best"][name] <= first["bounds"][name][1] + 1e-6 for name in TOKENS)


def test_noise_alone_gets_no_verdict(done: Path) -> None:
    lines = done.read_text(encoding="utf-8").splitlines()
    noise = np.random.default_rng(3).normal(3, 0.015, len(lines))
    rows = [f"{line.rsplit(',', 1)[0]},{loss:.4f}" for line, loss in zip(lines[1:], noise, strict=False)]
    done.write_text("\n".join([lines[0], *rows]) + "\n", encoding="utf-8")
    assert "no evidence that it is better" in run("fit", done, "--bootstrap", 40)


def test_equal_losses_are_no_evidence_either(done: Path) -> None:
    lines = done.read_text(encoding="utf-8").splitlines()
    rows = [f"{line.rsplit(',', 1)[0]},3.5" for line in lines[1:]]
    done.write_text("\n".join([lines[0], *rows]) + "\n", encoding="utf-8")
    data = json.loads(run("fit", done, "--bootstrap", 20, "--json"))
    assert data["is_better"] is False
    assert data["loss"]["value"] == pytest.approx(3.5)


def test_the_design_says_how_to_fit(corpus: Path, tmp_path: Path) -> None:
    table = tmp_path / "mixes.csv"
    words = ("--runs", 12, "--out", table, "--tokens", "1B", "--max-epochs", 3)
    text = run("design", corpus, *words)
    assert text.endswith(f"chinchilla-ds mix fit {table} --corpus {corpus} --tokens 1000000000 --max-epochs 3")
    first = table.read_text(encoding="utf-8")
    run("design", corpus, *words)
    assert table.read_text(encoding="utf-8") == first
    header, natural, *rows = csv.reader(first.splitlines())
    assert header == ["run", *(f"weight:{name}" for name in TOKENS)]
    assert natural == ["natural", "0.060000", "0.120000", "0.800000", "0.020000"]
    assert max(float(row[4]) for row in rows) == pytest.approx(0.03)


def test_flags_that_contradict_one_another_are_refused_together(tmp_path: Path) -> None:
    assert refused(ConfigError, "design", "x", "--target", "loss") == (
        "the following arguments are required: --runs, --out",
    )
    design = ("design", "x", "--runs", 8, "--out", tmp_path / "a.csv")
    assert refused(ConfigError, *design, "--target", "loss") == ("--target is not a flag; --help lists them",)
    assert refused(ConfigError, *design, "--max-epochs", 2) == (
        "--max-epochs has no effect without --tokens: say how long the large run is",
    )
    assert refused(ConfigError, "fit", "x", "--tokens", 1e9, "--bootstrap", 2) == (
        "--tokens needs --corpus: the tokens that each source has",
        "--bootstrap is 2; it must be at least 20, and 200 for steady ends",
    )
    steps = "not one of mix design, mix fit, mix run"
    assert refused(ConfigError, "desing", "x") == (f"'mix desing' is {steps}; did you mean 'mix design'?",)
    assert refused(ConfigError) == (f"'mix' is {steps}",)


def test_what_is_missing_is_named(corpus: Path, done: Path, tmp_path: Path) -> None:
    (found,) = refused(DataError, "design", tmp_path / "none", "--runs", 8, "--out", tmp_path / "a.csv")
    assert "holds no usable prepared data" in found
    single = write_corpus(tmp_path / "single", tokens={"web": 1000})
    (found,) = refused(DataError, "design", single, "--runs", 8, "--out", tmp_path / "a.csv")
    assert "has one source, 'web'" in found
    (found,) = refused(OutputError, "design", corpus, "--runs", 8, "--out", tmp_path / "none" / "a.csv")
    assert "is not a folder" in found
    done.write_text(done.read_text(encoding="utf-8").replace("natural", "first"), encoding="utf-8")
    (found,) = refused(DataError, "fit", done, "--out", tmp_path / "b.yaml")
    assert "has no row named natural" in found
    assert not (tmp_path / "b.yaml").exists()
    (found,) = refused(ConfigError, "design", corpus, "--runs", 8, "--out", tmp_path / "a.csv", "--tokens", "3B")
    assert "--tokens 2000000000" in found
    assert "--max-epochs 6" in found
    assert not (tmp_path / "a.csv").exists()
