import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chinchilla_ds.distributed.launch import LaunchError
from chinchilla_ds.errors import DataError
from chinchilla_ds.processes import endings
from chinchilla_ds.processes.endings import Ending, Interrupted, at_ending, end_well, no_library_exits

PEER_GONE = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242")

_PROGRAM = """
import ctypes, os, sys, time
os.environ.update(RANK="0", WORLD_SIZE="1")
from chinchilla_ds.processes import endings
endings.STUCK_S = endings.CLEAN_UP_S = 0.5

def stand_still():
    print("ready", flush=True)
    time.sleep(60)

def sit_in_c():
    mutex = ctypes.create_string_buffer(256)
    print("ready", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)  # for ever; signals do not end it

def clean_up_for_ever():
    try:
        stand_still()
    finally:
        time.sleep(60)

stop = endings.StopRequest()

def take_steps():
    print("ready", flush=True)
    with stop.honoured():
        while not stop.asked(run_folder=None):
            time.sleep(0.05)
        print("saving", flush=True)
        time.sleep(float(sys.argv[2]))
        stop.done()
    time.sleep(0.5)
    return 85

def save_after_the_last_step():
    with stop.honoured():
        print("ready", flush=True)
        time.sleep(0.5)
        print("saved", flush=True)
    time.sleep(60)  # the evaluation

sys.exit(endings.end_well(globals()[sys.argv[1]], stop=stop))
"""


@pytest.fixture(autouse=True)
def _rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


def _raises(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_well(lambda: 0) == 0
    assert end_well(lambda: 85) == 85
    assert capsys.readouterr().err == ""


def test_rank_0_prints_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_well(_raises(DataError(["one", "two"]))) == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"


def test_another_rank_leaves_it_to_rank_0_but_speaks_when_nobody_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited_s: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(endings.time, "sleep", waited_s.append)
    assert end_well(_raises(DataError("mine alone"))) == 2
    assert waited_s == [endings.PATIENCE_S]
    assert capsys.readouterr().err == "error: rank 1: mine alone\n"


def test_a_bug_is_raised_at_once_and_a_lost_peer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_s: list[float] = []
    monkeypatch.setattr(endings.time, "sleep", waited_s.append)
    with pytest.raises(RuntimeError, match="a bug"):
        end_well(_raises(RuntimeError("a bug")))
    assert waited_s == []
    monkeypatch.setattr(endings, "_DEATH_SEEN_S", 0.0)
    with pytest.raises(RuntimeError, match="by peer"):
        end_well(_raises(PEER_GONE))
    assert waited_s == [endings.PATIENCE_S]


def test_a_rank_that_waits_is_ended_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended_by_the_launcher(seconds: float) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(endings.time, "sleep", ended_by_the_launcher)
    monkeypatch.setattr(endings, "_DEATH_SEEN_S", 0.0)
    assert end_well(_raises(PEER_GONE)) == 143
    assert capsys.readouterr().err == ""


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    end_well(lambda: 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("work", ["stand_still", "sit_in_c", "clean_up_for_ever"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_it_whatever_it_does(work: str, number: signal.Signals, exit_code: int) -> None:
    with _start(work) as program:
        os.kill(program.pid, number)
        _, errors = program.communicate(timeout=20)
    assert program.returncode == exit_code
    assert errors == f"interrupted by {number.name}\n"


@contextlib.contextmanager
def _start(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        time.sleep(0.1)
        yield program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_steps_is_honoured_and_what_comes_after_it_changes_nothing(number: signal.Signals) -> None:
    with _start("take_steps", "1") as program:
        os.kill(program.pid, number)
        assert program.stdout is not None
        assert program.stdout.readline() == "saving\n"
        os.kill(program.pid, signal.SIGTERM)  # the launcher's, after Ctrl-C or to the whole process group
        time.sleep(1.2)
        os.kill(program.pid, signal.SIGTERM)  # the launcher's, once the first rank has left
        _, errors = program.communicate(timeout=20)
    assert program.returncode == 85
    assert errors.startswith(f"{number.name}: finishing the step, then saving")
    assert "interrupted" not in errors


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_too_late_for_the_last_step_lets_the_save_end_and_then_ends_it(
    number: signal.Signals, exit_code: int
) -> None:
    with _start("save_after_the_last_step") as program:
        os.kill(program.pid, number)
        shown, errors = program.communicate(timeout=20)
    assert (program.returncode, shown) == (exit_code, "saved\n")
    assert errors.endswith(f"interrupted by {number.name}\n")


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with _start("take_steps", "60") as program:
        os.kill(program.pid, signal.SIGINT)
        assert program.stdout is not None
        assert program.stdout.readline() == "saving\n"
        os.kill(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=20)
    assert program.returncode == 130
    assert errors.endswith("interrupted by SIGINT\n")


def _endings_of(work: Callable[[], int]) -> list[Ending]:
    """Run to the end and return what the hooks were told."""
    told: list[Ending] = []

    def with_hook() -> int:
        at_ending(told.append)
        return work()

    with contextlib.suppress(RuntimeError):
        end_well(with_hook)
    return told


@pytest.mark.parametrize(
    ("work", "ending"),
    [
        (lambda: 0, Ending(exit_code=0)),
        (lambda: 85, Ending(exit_code=85)),
        (_raises(DataError(["one", "two"])), Ending(exit_code=2, reason="one\ntwo")),
        (_raises(RuntimeError("a bug")), Ending(exit_code=1, reason="RuntimeError: a bug")),
        (_raises(Interrupted(signal.SIGTERM)), Ending(exit_code=143, reason="interrupted by SIGTERM", asked=True)),
    ],
)
def test_every_ending_is_told_once(work: Callable[[], int], ending: Ending) -> None:
    assert _endings_of(work) == [ending]


def test_a_library_that_exits_with_0_has_failed() -> None:
    """As DeepSpeed's autotuning does."""

    def work() -> int:
        with no_library_exits():
            raise SystemExit(0)

    with pytest.raises(RuntimeError, match=r"a library has called exit\(0\), before the work was done"):
        end_well(work)
    (ending,) = _endings_of(work)
    assert ending.exit_code == 1


def test_what_every_task_meets_is_said_by_rank_0_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endings.time, "sleep", lambda seconds: pytest.fail("srun ends nobody: there is no wait"))
    monkeypatch.setenv("RANK", "1")
    assert end_well(_raises(LaunchError("no address"))) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert end_well(_raises(LaunchError("no address"))) == 2
    assert capsys.readouterr().err == "error: no address\n"


_FOLLOWER = """
import os, sys, threading, time
from chinchilla_ds.processes import endings
from chinchilla_ds.distributed.launch import Place
from chinchilla_ds.distributed.peers import Departure
endings.STUCK_S = endings.CLEAN_UP_S = 0.5
endings.FOLLOW_S = 0.1
rank, left = int(sys.argv[1]), int(sys.argv[2])
os.environ.update(
    RANK=str(rank), WORLD_SIZE="4", LOCAL_RANK=str(rank % 2), LOCAL_SIZE="2", MASTER_ADDR="x", MASTER_PORT="1"
)

def work():
    place = Place(rank=rank, world_size=4, local_rank=rank % 2, local_size=2)
    gone = Departure(rank=left, local_rank=left % 2, exit_code=2, reason="no such folder")
    threading.Thread(target=endings.follow, args=(gone,), kwargs={"place": place}).start()
    time.sleep(30)

sys.exit(endings.end_well(work))
"""


@pytest.mark.parametrize(
    ("rank", "left", "says"),
    [
        (0, 3, True),
        (1, 3, False),
        *(
            pytest.param(rank, left, says, marks=pytest.mark.slow)
            for rank, left, says in ((2, 3, True), (3, 2, True), (1, 0, False), (2, 0, True), (3, 0, False))
        ),
    ],
)
def test_a_rank_follows_one_that_has_left_and_one_per_machine_says_why(rank: int, left: int, says: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FOLLOWER, str(rank), str(left)],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == (f"error: rank {left}: no such folder\n" if says else "")
