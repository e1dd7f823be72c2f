"""How real runs under the deepspeed launcher end when they cannot go on: one message, one exit code, nobody left."""

import contextlib
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
from tests.launching import ROOT, finish, interrupt, launch, write_corpus

FAULTY = ROOT / "tests/distributed/faulty_pretrain.py"
NO_CORPUS = "nowhere.txt does not exist"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 MB of text."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


def _mlflow_statuses(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [status for (status,) in database.execute("select status from runs")]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_rank_refuses_and_one_says_so(tmp_path: Path, ranks: int) -> None:
    ended = finish(launch("--data", "nowhere.txt", folder=tmp_path, ranks=ranks))
    assert ended.exit_code == 2, ended.text
    assert ended.text.count(NO_CORPUS) == 1, ended.text
    assert "Traceback" not in ended.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ranks_that_the_layout_cannot_use(tmp_path: Path) -> None:
    ended = finish(launch(folder=tmp_path, ranks=3, ds="zero3_tp2_pp2"))
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("world_size (3 ranks) must be a multiple of") == 1, ended.text
    assert "Traceback" not in ended.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message", "left"),
    [(b"caf\xe9\n" * 1000, "is not UTF-8: byte 0xe9 at offset 3", set()), (None, "--max-epochs 3", {"runs"})],
)
def test_text_that_rank_0_cannot_use_ends_all(
    tmp_path: Path, corpus: Path, content: bytes | None, message: str, left: set[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes()[:100_000] if content is None else content)
    ended = finish(launch("--flops", "6e10", "--data", text, folder=tmp_path, ranks=2))
    assert ended.exit_code == 2, ended.text
    assert ended.text.count(message) == 1, ended.text
    assert "Traceback" not in ended.text
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"} | left


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_on_one_rank_keeps_its_traceback_and_ends_all(tmp_path: Path, corpus: Path, rank: int) -> None:
    run = launch(
        "--flops", "6e10", "--data", corpus,
        folder=tmp_path, ranks=2, script=FAULTY, FAULT="bug", FAULT_RANK=str(rank),
    )  # fmt: skip
    ended = finish(run)
    assert ended.exit_code == 1, ended.text
    assert ended.text.count("Traceback (most recent call last)") == 1, ended.text
    assert f"[rank{rank}]: RuntimeError: a bug of ours" in ended.text
    assert _mlflow_statuses(tmp_path) == ["FAILED"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "message"),
    [
        ("user", 0, "error: this folder is read-only"),
        ("user", 1, "error: rank 1: this folder is read-only"),
        ("disk", 0, "No space left on device"),
    ],
)
def test_a_users_error_on_one_rank_is_seen_and_ends_all(
    tmp_path: Path, corpus: Path, fault: str, rank: int, message: str
) -> None:
    run = launch(
        "--flops", "6e10", "--data", corpus,
        folder=tmp_path, ranks=2, script=FAULTY, FAULT=fault, FAULT_RANK=str(rank),
    )  # fmt: skip
    ended = finish(run)
    assert ended.exit_code == 2, ended.text
    assert ended.text.count(message) == 1, ended.text
    assert "Traceback" not in ended.text
    assert _mlflow_statuses(tmp_path) == ["FAILED"]


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_every_rank(tmp_path: Path, corpus: Path) -> None:
    run = launch("--flops", "1e11", "--data", corpus, folder=tmp_path, ranks=2)
    ended = interrupt(run, signal.SIGTERM, after="Setting accelerator", group=False)
    assert ended.exit_code in (-signal.SIGTERM, 1), ended.text
    assert "[rank" not in ended.text
    assert not list(tmp_path.glob("runs/*/checkpoint*"))


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, of `request.param` KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small_disk", "message"),
    [
        (64, "and the checkpoint of 59552 parameters takes at least 697.88 KiB"),
        (1500, "cannot write prepared data"),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk(tmp_path: Path, corpus: Path, small_disk: Path, message: str) -> None:
    run = launch("--flops", "6e10", "--data", corpus, "--output", small_disk / "runs", folder=tmp_path, ranks=None)
    ended = finish(run)
    assert ended.exit_code == 2, ended.text
    assert ended.text.count(message) == 1, ended.text
    assert "Traceback" not in ended.text
    hidden = [path.name for path in small_disk.rglob(".*")]
    assert all(name.endswith(".work") for name in hidden), "whole pieces of text are kept for the next try"


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [760], indirect=True)
def test_a_disk_without_room_for_the_checkpoint(tmp_path: Path, corpus: Path, small_disk: Path) -> None:
    recipe = Recipe(sources=(SourceRecipe(paths=(str(corpus),)),), vocab_size=512)
    prepare_recipe(recipe, folder=tmp_path / "text", num_workers=1)
    run = launch(
        "--flops", "6e10", "--data", tmp_path / "text", "--output", small_disk / "runs", folder=tmp_path, ranks=None
    )  # fmt: skip
    ended = finish(run)
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("cannot write the checkpoint") == 1, ended.text
    assert "Traceback" not in ended.text
    assert not list(small_disk.rglob("step_*"))
    assert [path.name for path in small_disk.rglob(".*")] == [".lock"]


@pytest.mark.slow
def test_a_read_only_disk(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        ended = finish(launch("--output", place / "runs", folder=tmp_path, ranks=None))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert ended.exit_code == 2, ended.text
    assert "cannot be written" in ended.text
    assert "Read-only file system" in ended.text
