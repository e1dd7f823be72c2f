import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.cli import endings
from chinchilla_ds.cli.endings import Interrupted, end_well
from chinchilla_ds.errors import DataError

PEER_GONE = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242")

_PROGRAM = """
import ctypes, os, sys, time
os.environ.update(RANK="0", WORLD_SIZE="1")
from chinchilla_ds.cli import endings
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

sys.exit(endings.end_well(globals()[sys.argv[1]]))
"""


@pytest.fixture(autouse=True)
def _rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


def _raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_well(lambda: None) == 0
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
    with pytest.raises(RuntimeError, match="by peer"):
        end_well(_raises(PEER_GONE))
    assert waited_s == [endings.PATIENCE_S]


def test_a_rank_that_waits_is_ended_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended_by_the_launcher(seconds: float) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(endings.time, "sleep", ended_by_the_launcher)
    assert end_well(_raises(PEER_GONE)) == 143
    assert capsys.readouterr().err == ""


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    end_well(lambda: None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("work", ["stand_still", "sit_in_c", "clean_up_for_ever"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_whatever_it_does(work: str, number: signal.Signals, exit_code: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, work],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.kill(program.pid, number)
        _, errors = program.communicate(timeout=20)
    assert program.returncode == exit_code
    assert errors == f"interrupted by {number.name}\n"
