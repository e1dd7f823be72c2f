import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from chinchilla_ds.processes import siblings
from chinchilla_ds.processes.siblings import Siblings

LIVE = "import time; time.sleep(60)"


def _variables(rank: int) -> dict[str, str]:
    """What the deepspeed launcher sets."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_SIZE": "4"}
    return {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Three other ranks, as children of the parent that this process is made to believe it has."""
    started = [subprocess.Popen([sys.executable, "-c", LIVE], env=_variables(rank)) for rank in (1, 2, 3)]
    monkeypatch.setattr(siblings.os, "getppid", os.getpid)
    for name, value in _variables(0).items():
        monkeypatch.setenv(name, value)
    time.sleep(0.2)
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_the_dead_are_named_and_told_apart(ranks: list["subprocess.Popen[bytes]"]) -> None:
    family, late = Siblings(), Siblings()
    family.refresh()
    late.refresh()
    assert family.gone() == []
    assert family.is_lowest_left(own_rank=0)
    assert not family.is_lowest_left(own_rank=2)

    ranks[0].send_signal(signal.SIGKILL)  # a zombie from here on: its parent has not asked for its status
    os.waitid(os.P_PID, ranks[0].pid, os.WEXITED | os.WNOWAIT)
    (killed,) = family.gone()
    assert str(killed) == f"rank 1 (process {ranks[0].pid}) was killed by SIGKILL"
    assert not killed.left_by_itself
    assert family.is_lowest_left(own_rank=2)

    ranks[0].wait()
    ranks[1].kill()
    ranks[1].wait()
    assert family.gone() == [killed], "the first death counts"
    assert [str(one) for one in late.gone()] == [
        f"rank {number} (process {ranks[number - 1].pid}) is gone" for number in (1, 2)
    ]


def test_one_that_exits_has_said_why(ranks: list["subprocess.Popen[bytes]"]) -> None:
    family = Siblings()
    family.refresh()
    ranks[2].kill()
    ranks[2].wait()
    ranks[2] = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"], env=_variables(3))
    family = Siblings()
    time.sleep(0.01)
    family.refresh()
    os.waitid(os.P_PID, ranks[2].pid, os.WEXITED | os.WNOWAIT)
    assert [(one.rank, one.left_by_itself) for one in family.gone()] == [(3, True)]
