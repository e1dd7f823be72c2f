"""Saves that fail in every way, and checkpoints that are damaged: a clear message, and the next start goes on."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint.folder import list_checkpoints, problems_of
from chinchilla_ds.checkpoint.reader import CheckpointReader
from tests.faults.test_ranks import DEATH_S
from tests.launching import ROOT, Ended, finish, launch, write_corpus

pytestmark = pytest.mark.slow

FAULTY = ROOT / "tests/faults/faulty_rank.py"
FLAGS = ("--flops", "6e10", "--seq-length", "128", "--global-batch-size", "16", "--save-every", "10-steps")
FIRST, SECOND = "step_0000010", "step_0000020"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


def start(corpus: Path, folder: Path, *more: object, fault: str = "", rank: int = 0, **env: str) -> Ended:
    """Run the same command, whether for the first time or again."""
    env = env | ({"FAULT": fault, "FAULT_RANK": str(rank)} if fault else {})
    flags = (*FLAGS, "--data", corpus, *more)
    return finish(launch(*flags, folder=folder, ranks=2, ds="zero1", script=FAULTY, **env))


def run_of(folder: Path) -> Path:
    (path,) = (path.parent for path in folder.rglob("runs/*/plan.json"))
    return path


def losses_of(folder: Path) -> dict[int, float]:
    """Return the training loss of each step; a step that is there twice is an error."""
    lines = [json.loads(line) for line in (run_of(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert len(dict(steps)) == len(steps), "a step is there twice"
    return dict(steps)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    ended = start(corpus, folder)
    assert ended.exit_code == 0, ended.text
    assert len(losses_of(folder)) > 20, "the second save comes before the end"
    return folder


def check_goes_on(folder: Path, whole: Path, again: Ended, *, start_at: str) -> None:
    """Check that a run went on from a checkpoint and ended as the run that nothing happened to, bit by bit."""
    assert again.exit_code == 0, again.text
    assert f"continuing    {run_of(folder).relative_to(folder)} from {start_at}" in again.text, again.text
    steps, told = losses_of(whole), losses_of(folder)
    assert told == {step: steps[step] for step in told}
    first = int(start_at.removeprefix("step_")) + 1
    assert told.keys() >= set(range(first, max(steps) + 1)), "lines that a killed process had not written are lost"
    mine, wanted = (CheckpointReader.open(run_of(path)) for path in (folder, whole))
    assert mine.state.iteration == wanted.state.iteration
    assert all(mine.read(name).equal(wanted.read(name)) for name in wanted.names())


@pytest.mark.parametrize(
    ("fault", "rank", "start_at"),
    [
        ("save_before", 1, FIRST),
        ("save_after", 0, FIRST),
        ("save_commit", 0, FIRST),
        ("save_named", 0, SECOND),
    ],
)
def test_a_rank_that_is_killed_in_a_save(
    corpus: Path, tmp_path: Path, whole: Path, fault: str, rank: int, start_at: str
) -> None:
    ended = start(corpus, tmp_path, fault=fault, rank=rank)
    assert ended.exit_code == 256 - signal.SIGKILL, ended.text
    assert f"error: rank {rank} (process" in ended.text, ended.text
    assert ended.seconds < DEATH_S
    assert list_checkpoints(run_of(tmp_path) / "checkpoints")[0].name == start_at
    check_goes_on(tmp_path, whole, start(corpus, tmp_path), start_at=start_at)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 32 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_in_a_save(corpus: Path, tmp_path: Path, small_disk: Path, whole: Path) -> None:
    filler, output = small_disk / "filler", ("--output", small_disk / "runs")
    ended = start(corpus, tmp_path, *output, fault="save_disk", FAULT_FILL=str(filler))
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("cannot write the checkpoint") == 1, ended.text
    assert "No space left on device; the earlier checkpoints are intact" in ended.text
    assert "Traceback" not in ended.text
    again = start(corpus, tmp_path, *output)
    assert again.exit_code == 2, again.text
    assert "free some" in again.text, "the full disk is noticed before anything is done"
    filler.unlink()
    found = list_checkpoints(run_of(small_disk) / "checkpoints")
    assert [path.name for path in found] == [FIRST]
    ended = start(corpus, tmp_path, *output)
    assert ended.exit_code == 0, ended.text
    assert f"from {FIRST}" in ended.text
    assert losses_of(small_disk) == losses_of(whole)


def test_the_right_to_write_is_taken_away_in_a_save(corpus: Path, tmp_path: Path, whole: Path) -> None:
    ended = start(corpus, tmp_path, fault="save_permission")
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("cannot write the checkpoint") == 1, ended.text
    assert "Permission denied" in ended.text
    assert "Traceback" not in ended.text
    check_goes_on(tmp_path, whole, start(corpus, tmp_path), start_at=FIRST)


def test_states_that_cannot_be_saved_are_refused_before_the_first_step(corpus: Path, tmp_path: Path) -> None:
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    (tmp_path / "bf16.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, "bf16": bf16}))
    flags = (*FLAGS, "--data", corpus)
    ended = finish(launch(*flags, folder=tmp_path, ranks=2, ds=str(tmp_path / "bf16"), script=FAULTY))
    assert ended.exit_code == 2, ended.text
    assert "bf16_master_weights_and_grads" in ended.text
    assert "Traceback" not in ended.text
    assert "step  " not in ended.text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second save."""
    folder = tmp_path_factory.mktemp("stopped")
    start(corpus, folder, fault="save_named")
    assert {FIRST, SECOND} <= {path.name for path in list_checkpoints(run_of(folder) / "checkpoints")}
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [("manifest.json", cut), ("state.json", cut), ("plan.json", flip), ("tensors/__1_0.distcp", flip)],
)
def test_a_damaged_file_of_the_newest_is_named_and_the_one_before_is_taken(
    corpus: Path, tmp_path: Path, whole: Path, stopped: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Each kind of file: tests/distributed/test_checkpoint.py. A flipped bit of the manifest names another file."""
    place = tmp_path / "copy"
    shutil.copytree(stopped, place, copy_function=shutil.copy2)
    path = run_of(place) / "checkpoints" / SECOND / name
    damage(path)
    again = start(corpus, place)
    assert again.exit_code == 0, again.text
    assert f"{path.relative_to(place)}" in again.text, again.text
    assert f"{FIRST}, the newest that is intact" in again.text or f"from {FIRST}" in again.text, again.text
    assert losses_of(place) == losses_of(whole)
    assert problems_of(list_checkpoints(run_of(place) / "checkpoints")[0]) == []


def test_a_run_of_which_nothing_is_whole_is_refused(corpus: Path, tmp_path: Path, stopped: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(stopped, place, copy_function=shutil.copy2)
    for checkpoint in list_checkpoints(run_of(place) / "checkpoints"):
        cut(checkpoint / "tensors/__0_0.distcp")
    again = start(corpus, place)
    assert again.exit_code == 2, again.text
    assert "holds no intact checkpoint" in again.text or "is intact; --resume none" in again.text, again.text
    assert "Traceback" not in again.text
