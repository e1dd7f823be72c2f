"""The same command after the end: it says so, with the run's table, and trains nothing again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.cli import pretrain
from chinchilla_ds.config import RunConfig
from chinchilla_ds.runs.earlier import continued
from chinchilla_ds.runs.finished import describe_finished
from chinchilla_ds.runs.request import RunRequest
from tests.unit.cli.earlier_runs import begin, save

REACHED = {"loss": 3.25, "held_out_loss": 3.5, "held_out_bits_per_byte": 1.75}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a run that has reached its end."""
    request = RunRequest(config=RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs"))
    folder = begin(request, "run", at_s=100, saved=(4,))
    save(folder, 9, complete=True, **REACHED)
    return folder


def test_the_table_says_what_was_reached(finished: Path) -> None:
    told = describe_finished(continued(finished))
    first, *rows = told.splitlines()
    assert first.startswith(f"finished      {finished}: the run of this command has reached its plan's end")
    assert "`checkpoint.resume=none` starts another" in first
    table = dict(row.split("  ", 1) for row in rows if "  " in row)
    assert table["predicted loss *"].strip() == "5.5000 nats/token by none"
    assert table["train loss"].strip() == "3.2500 nats/token, 1.6250 bits/byte (the last step)"
    assert table["held-out loss"].strip() == "3.5000 nats/token, 1.7500 bits/byte"
    assert table["D"].strip() == "576 tokens, 0.0 per parameter"
    assert table["checkpoint"].strip().endswith("run/checkpoints/step_0000009")


def test_a_loss_that_was_not_finite_has_no_row(finished: Path) -> None:
    save(finished, 9, complete=True, loss=None, held_out_loss=None)
    told = describe_finished(continued(finished))
    assert "train loss" not in told
    assert "held-out loss" not in told


@pytest.fixture
def command(
    rank_zero_of: Callable[[int], None], ds_configs: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the command that asked for the run, with more flags; 99 where it would train."""

    class TrainsError(BaseException):
        pass

    def train(*_: object, **__: object) -> None:
        raise TrainsError

    monkeypatch.setattr("chinchilla_ds.runs.train._check_places", train)
    words = ["--ds_config", str(ds_configs / "zero1.json"), "--flops", "1e11", "--output", str(finished.parent)]

    def run(*more: str) -> int:
        try:
            return pretrain.main([*words, *more])
        except TrainsError:
            return 99

    return run


@pytest.mark.parametrize("more", [(), ("--keep", "9"), ("--micro-batch-size", "2"), ("--resume", "{run}")])
def test_the_command_says_so_and_ends_well(
    more: tuple[str, ...], command: Callable[..., int], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*")}
    assert command(*(word.format(run=finished) for word in more)) == 0
    shown = capsys.readouterr().out
    assert "finished  " in shown
    assert "nothing is left to do; --resume none starts another" in shown
    assert {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*")} == before, "nothing is written"


def test_only_rank_zero_says_so(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "more", [("--resume", "none"), ("--seed", "7"), ("--resume", "{run}/checkpoints/step_0000004")]
)
def test_another_run_is_trained(more: tuple[str, ...], command: Callable[..., int], finished: Path) -> None:
    assert command(*(word.format(run=finished) for word in more)) == 99


def test_a_run_that_has_not_ended_goes_on(command: Callable[..., int], finished: Path) -> None:
    save(finished, 9, complete=False)
    assert command() == 99
