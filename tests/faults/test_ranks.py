"""Ranks that die, hang or run out of memory, and runs asked to stop: one message, a time limit, nobody left."""

import dataclasses
import signal
import time
from pathlib import Path

import pytest

from chinchilla_ds.errors import EXIT_CODE_HUNG, EXIT_CODE_STOPPED
from tests.launching import ROOT, Ended, finish, interrupt, launch, write_corpus

FAULTY = ROOT / "tests/faults/faulty_rank.py"
DEATH_S = 40.0
"""From a rank's death to the last process's end, as docs/faults.md promises: 20 s; twice that on a busy machine."""
HANG_TIMEOUT_S = 8
BATCH = ("--seq-length", "128", "--global-batch-size", "16", "--micro-batch-size", "2", "--max-epochs", "100")
DP2, TP2_PP2 = ("zero1", 2), ("zero3_tp2_pp2", 4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


def _run_with(
    fault: str,
    corpus: Path,
    folder: Path,
    *,
    layout: tuple[str, int],
    rank: int,
    flops: str = "1e11",
    flags: tuple[str, ...] = (),
) -> Ended:
    ds, ranks = layout
    run = launch(
        "--flops", flops, *BATCH, "--data", corpus, *flags,
        folder=folder, ranks=ranks, ds=ds, script=FAULTY, FAULT=fault, FAULT_RANK=str(rank),
    )  # fmt: skip
    assert run.stdout is not None
    lines: list[str] = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("FAULT"):
            break
    met_s = time.monotonic()
    ended = finish(run)
    return dataclasses.replace(ended, text="".join(lines) + ended.text, seconds=time.monotonic() - met_s)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [DP2, TP2_PP2], ids=["zero1-dp2", "zero3-tp2-pp2"])
@pytest.mark.parametrize("fault", ["forward", "backward", "all_reduce"])
def test_a_killed_rank_is_named_and_the_others_leave(
    tmp_path: Path, corpus: Path, fault: str, layout: tuple[str, int]
) -> None:
    rank = layout[1] - 1
    ended = _run_with(fault, corpus, tmp_path, layout=layout, rank=rank)
    assert f"FAULT {fault}" in ended.text, ended.text
    assert ended.seconds < DEATH_S
    assert ended.exit_code == 256 - signal.SIGKILL, ended.text  # the launcher's -9
    assert ended.text.count(f"error: rank {rank} (process") == 1, ended.text
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_a_frozen_rank_makes_the_others_write_their_stacks_and_leave(tmp_path: Path, corpus: Path) -> None:
    flags = ("--hang-timeout", str(HANG_TIMEOUT_S))
    ended = _run_with("stop", corpus, tmp_path, layout=TP2_PP2, rank=3, flags=flags)
    assert ended.exit_code == EXIT_CODE_HUNG, ended.text
    assert ended.seconds < HANG_TIMEOUT_S + 2 * 40  # and five times the slowest step, on a busy machine
    assert "error: rank 0: step 3 was not finished after" in ended.text, ended.text
    stacks = sorted(path.name for path in tmp_path.glob("runs/*/stacks-rank*.txt"))
    assert stacks == ["stacks-rank0.txt", "stacks-rank1.txt", "stacks-rank2.txt"]
    for path in tmp_path.glob("runs/*/stacks-rank*.txt"):
        assert "train_step" in path.read_text()


@pytest.mark.slow
def test_out_of_memory_on_one_rank_shows_the_plans_table_and_what_fits(tmp_path: Path, corpus: Path) -> None:
    ended = _run_with("memory", corpus, tmp_path, layout=DP2, rank=0)
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("asking for 20.00 GiB more; the plan expected") == 1, ended.text
    assert "The fullest rank is of stage 0" in ended.text
    assert "--micro-batch-size 1: " in ended.text
    assert "Traceback" not in ended.text


@pytest.mark.slow
def test_a_bad_batch_is_passed_over_and_written_down(tmp_path: Path, corpus: Path) -> None:
    ended = _run_with("nan", corpus, tmp_path, layout=DP2, rank=1, flops="5e10")
    assert ended.exit_code == 0, ended.text
    assert ended.text.count("step 3: loss nan, samples 34-35, first seen on rank 1; the batch is passed over") == 1
    (file,) = tmp_path.glob("runs/*/bad_batches.jsonl")
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "group", "rank"),
    [
        pytest.param(
            signal.SIGTERM, False, 1, marks=pytest.mark.slow
        ),  # one rank alone: all follow, and the launcher passes the code on
        pytest.param(signal.SIGUSR1, False, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, None, marks=pytest.mark.slow),  # the command, which dies of it
        pytest.param(signal.SIGTERM, True, None, marks=pytest.mark.slow),  # timeout, scancel: everybody
        pytest.param(signal.SIGINT, True, None, marks=pytest.mark.slow),  # Ctrl-C in a terminal
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_leaves(
    tmp_path: Path, corpus: Path, number: signal.Signals, group: bool, rank: int | None
) -> None:
    run = launch("--flops", "1e12", *BATCH, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1")
    ended = interrupt(run, number, after="| loss", group=group, rank=rank)
    assert ended.text.count(f"stopped by {number.name if rank != 1 else 'a signal to another rank'}; saved in") <= 1
    assert "; the same command continues" in ended.text, ended.text
    assert "[rank" not in ended.text
    assert list(tmp_path.glob("runs/*/checkpoint*")), ended.text
    assert ended.seconds < DEATH_S
    # the launcher that was signalled itself has a code of its own
    assert ended.exit_code == EXIT_CODE_STOPPED if rank is not None else ended.exit_code in (-number, 1), ended.text


@pytest.mark.slow
def test_the_stop_file_stops_a_run_and_is_taken_away(tmp_path: Path, corpus: Path) -> None:
    run = launch("--flops", "1e12", *BATCH, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1")
    assert run.stdout is not None
    for line in run.stdout:
        if "| loss" in line:
            break
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/plan.json"))
    (folder / "STOP").touch()
    ended = finish(run)
    assert ended.exit_code == EXIT_CODE_STOPPED, ended.text
    assert "STOP; saved in" in ended.text
    assert not (folder / "STOP").exists()
