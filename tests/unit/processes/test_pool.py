"""One pool: who works, in what order, what a killed worker says, and that no worker outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_ds.errors import WorkerError
from chinchilla_ds.processes.pool import Workers


def square_and_pid(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for_ever(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def hold_workers(folder: Path) -> None:
    with Workers(2) as workers:
        list(workers.run(wait_for_ever, [folder] * 2))


def test_one_worker_and_one_task_need_no_process() -> None:
    with Workers(1) as workers:
        assert list(workers.run(square_and_pid, [1, 2, 3])) == [(n, (n * n, os.getpid())) for n in (1, 2, 3)]
    with Workers(2) as workers:
        assert list(workers.run(square_and_pid, [])) == []
        assert list(workers.run(square_and_pid, [7])) == [(7, (49, os.getpid()))]


def test_the_same_processes_work_for_every_stage() -> None:
    with Workers(2) as workers:
        pids: set[int] = set()
        for stage in range(3):
            results = dict(workers.run(square_and_pid, range(stage, stage + 40)))
            assert {number: result for number, (result, _) in results.items()} == {
                number: number**2 for number in range(stage, stage + 40)
            }
            pids |= {pid for _, pid in results.values()}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_a_killed_worker_is_said() -> None:
    with Workers(2) as workers, pytest.raises(WorkerError, match="a worker process was killed, perhaps by the system"):
        list(workers.run(die_at_three, range(9)))


def test_no_worker_outlives_who_started_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.processes.test_pool import hold_workers;"
        "hold_workers(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(os.listdir(tmp_path)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [int(name) for name in os.listdir(tmp_path)]
    assert all(is_alive(worker) for worker in workers), "the control: they work"
    process.kill()
    process.wait()
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped by whoever inherits it does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
