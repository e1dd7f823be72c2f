"""How real runs under the deepspeed launcher end when they cannot go on: one message, one exit code, nobody left."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launchers/pretrain.py"
FAULTY = ROOT / "tests/distributed/faulty_pretrain.py"
TIMEOUT_S = 200.0
GONE_S = 30.0
"""For the last process to leave, once the command has; a second on an idle machine."""
NO_CORPUS = "nowhere.txt does not exist"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over."""

    exit_code: int
    text: str
    """Standard output and error."""
    seconds_after_signal: float = 0.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 MB of text."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    path.write_bytes(b"".join(module.read_bytes() for module in modules))
    return path


def launch(
    *flags: object, folder: Path, ranks: int | None, script: Path = LAUNCHER, ds: str = "zero3", **env: str
) -> "subprocess.Popen[str]":
    """Start a run in a session of its own; `ranks` None starts it without the launcher."""
    command = [sys.executable, str(script)]
    if ranks is not None:
        deepspeed = Path(sys.executable).with_name("deepspeed")
        command = [str(deepspeed), "--num_gpus", str(ranks), "--master_port", str(_free_port()), str(script)]
    command += ["--ds_config", str(ROOT / "ds_configs" / f"{ds}.json"), *map(str, flags)]
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_SIZE")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=clean | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(run: "subprocess.Popen[str]") -> Ended:
    """Wait for a run and check that no process of its session is left; whatever happens, none stays."""
    with _nobody_stays(run):
        text, _ = run.communicate(timeout=TIMEOUT_S)
        _wait_until_gone(run)
    return Ended(exit_code=run.returncode, text=text)


def interrupt(run: "subprocess.Popen[str]", number: signal.Signals, *, after: str, group: bool) -> Ended:
    """Send a signal, to the command alone or to all as Ctrl-C does, once a line with `after` has been printed."""
    with _nobody_stays(run):
        assert run.stdout is not None
        lines: list[str] = []
        for line in run.stdout:
            lines.append(line)
            if after in line:
                break
        sent_s = time.monotonic()
        (os.killpg if group else os.kill)(run.pid, number)
        rest, _ = run.communicate(timeout=TIMEOUT_S)
        _wait_until_gone(run)
        seconds = time.monotonic() - sent_s
    assert after in lines[-1], "".join(lines)
    return Ended(exit_code=run.returncode, text=rest, seconds_after_signal=seconds)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _session(leader: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            if os.getsid(int(entry)) == leader:
                found.append(int(entry))
    return found


def _wait_until_gone(run: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + GONE_S
    while left := _session(run.pid):
        assert time.monotonic() < deadline_s, f"processes {left} were left behind"
        time.sleep(0.1)


@contextlib.contextmanager
def _nobody_stays(run: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in _session(run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        run.wait()


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
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_without_the_launcher(
    tmp_path: Path, corpus: Path, number: signal.Signals, exit_code: int
) -> None:
    run = launch("--flops", "1e11", "--data", corpus, folder=tmp_path, ranks=None)
    ended = interrupt(run, number, after="held-out loss", group=number == signal.SIGINT)
    assert ended.exit_code == exit_code, ended.text
    assert ended.text.count(f"interrupted by {number.name}") == 1, ended.text
    assert "Traceback" not in ended.text
    assert ended.seconds_after_signal < GONE_S
    assert _mlflow_statuses(tmp_path) == ["FAILED"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "seen"),
    [
        (signal.SIGINT, True, "SIGINT"),  # Ctrl-C in a terminal
        (signal.SIGTERM, False, "SIGTERM"),  # kill, timeout: the deepspeed command dies of it and tells nobody
    ],
)
def test_a_signal_ends_every_rank(tmp_path: Path, corpus: Path, number: signal.Signals, group: bool, seen: str) -> None:
    run = launch("--flops", "1e11", "--data", corpus, folder=tmp_path, ranks=2)
    ended = interrupt(run, number, after="held-out loss", group=group)
    # Not ours: the deepspeed command dies of the signal, or passes on the 1 that its launcher ends with after a SIGINT.
    assert ended.exit_code in (-number, 1), ended.text
    assert ended.text.count(f"interrupted by {seen}") == 1, ended.text
    assert "[rank" not in ended.text
    assert _mlflow_statuses(tmp_path) == ["FAILED"]


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
        (2600, "the run has no checkpoint"),
    ],
    indirect=["small_disk"],
)
def test_a_full_disk(tmp_path: Path, corpus: Path, small_disk: Path, message: str) -> None:
    run = launch("--flops", "6e10", "--data", corpus, "--output", small_disk / "runs", folder=tmp_path, ranks=None)
    ended = finish(run)
    assert ended.exit_code == 2, ended.text
    assert ended.text.count(message) == 1, ended.text
    assert "Traceback" not in ended.text
    assert not list(small_disk.rglob("checkpoint"))
    assert not list(small_disk.rglob(".*"))


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
