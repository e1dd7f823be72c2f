"""Command lines: every command, with values and flags that are not what it expects."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.cli.main import COMMANDS, run_command
from chinchilla_ds.distributed.launch import Place
from chinchilla_ds.errors import ChinchillaError
from chinchilla_ds.runs import train
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import command_lines
from tests.fuzz.outcome import accepted, ends_well

LIGHT = {
    "plan": "--flops 1e18 --gpus 8 --gpu h100",
    "laws": "--flops 1e18",
    "memory": "{seeds}/plan.json",
    "ds-config": "{seeds}/plan.json",
    "fit": "{seeds}/runs.csv --prior none --bootstrap 0",
    "fit-curves": "{seeds}/cosine.csv --predict {seeds}/linear.csv --warmup 200",
    "mix fit": "{seeds}/mixtures.csv --out blend.yaml",
    "mix design": "{corpus} --out design.csv",
    "checkpoint inspect": "{run}",
    "checkpoint verify": "{run}",
    "track": "{run}",
    "help": "checkpoint verify",
    "completion": "bash",
}
HEAVY = {
    "prepare": "--source {text} --out prepared --vocab-size 400",
    "export": "{run} --out exported",
    "import": "{model} --out imported",
    "generate": "{run} --prompt loss --max-new-tokens 2",
    "evaluate": "{run} --data {text}",
    "checkpoint convert": "{run} --to weights --out converted",
    "mix run": "{seeds}/mixtures.csv --corpus {corpus} --ds_config {seeds}/ds_configs/zero3.json",
}
"""Read models or text: seconds each where the line is accepted."""
PRETRAIN = "--ds_config {seeds}/ds_configs/zero3.json --data {corpus} --flops 1e10 --output runs"


def test_every_command_is_here() -> None:
    assert LIGHT.keys() | HEAVY.keys() | {"pretrain"} == COMMANDS.keys()


@pytest.fixture
def places(seeds: Path, corpus: Path, run_folder: Path, exported_folder: Path, tmp_path: Path) -> dict[str, str]:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, symlinks=True)
    return {
        "seeds": str(seeds),
        "corpus": str(corpus),
        "run": str(run),
        "model": str(exported_folder),
        "text": str(corpus.parent / "text.jsonl"),
    }


def _lines(name: str, words: str, places: dict[str, str]) -> st.SearchStrategy[list[str]]:
    return command_lines([word.format(**places) for word in words.split()], _flags(name))


def _flags(name: str) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(["--help"]) if name == "pretrain" else run_command([*name.split(), "--help"])
    return sorted({word.strip(",[]") for word in text.getvalue().split() if word.startswith("--")} - {"--help", "--"})


@pytest.mark.parametrize("name", LIGHT)
def test_light(fuzz: Fuzz, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz(lambda line: ends_well([*name.split(), *line]), _lines(name, LIGHT[name], places), share=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_heavy(fuzz: Fuzz, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)

    def try_one(line: list[str]) -> None:
        ends_well([*name.split(), *line])
        for made in ("prepared", "exported", "imported", "converted"):
            shutil.rmtree(tmp_path / made, ignore_errors=True)

    fuzz(try_one, _lines(name, HEAVY[name], places), share=0.04)


def test_pretrain(fuzz: Fuzz, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the plan: what is read and checked before anything is built."""
    monkeypatch.chdir(tmp_path)

    def plan(line: list[str]) -> None:
        command = parse(line)
        train._plan(
            command, world_size=1, vocab_size=lambda: train._vocab_size(command.config, run=None, place=Place())
        )

    def try_one(line: list[str]) -> None:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            accepted(lambda: plan(line))

    fuzz(try_one, _lines("pretrain", PRETRAIN, places), share=0.3)
    with pytest.raises(ChinchillaError):
        plan(["--ds_config", ""])
