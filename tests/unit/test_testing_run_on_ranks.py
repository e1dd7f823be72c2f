import os
import signal
import struct
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.testing import RankError, RankTimeoutError, run_on_ranks


def rank() -> int:
    return int(os.environ["RANK"])


def wait_until(condition, *, timeout_s=5.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


def sum_over_ranks(value: float) -> tuple[float, float]:
    import deepspeed

    cpu_backend.install()  # or DeepSpeed compiles an all-reduce of its own, for most of a minute
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    mine = torch.tensor(value * (dist.get_rank() + 1))
    total = mine.clone()
    dist.all_reduce(total)
    return mine.item(), total.item()


@pytest.fixture(autouse=True)
def no_process_is_left():
    # what other tests have left running is Python's: the resource tracker of spawned workers lives as long as we do
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def test_results_come_back_in_rank_order():
    def slow_first(base, *, scale):
        time.sleep(0.2 if rank() == 0 else 0.0)
        return base + scale * rank()

    assert run_on_ranks(slow_first, 3, 100, scale=10) == [100, 110, 120]


def test_ranks_see_the_environment_of_torchrun():
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "EXTRA")
    seen = run_on_ranks(lambda: [os.environ[name] for name in names], 2, env={"EXTRA": "yes"})
    assert seen == [["0", "0", "2", "yes"], ["1", "1", "2", "yes"]]
    assert "EXTRA" not in os.environ


def test_all_reduce_over_gloo():
    assert run_on_ranks(sum_over_ranks, 4, 1.0) == [(1.0, 10.0), (2.0, 10.0), (3.0, 10.0), (4.0, 10.0)]


def test_all_reduce_control_fewer_ranks_differ():
    assert run_on_ranks(sum_over_ranks, 2, 1.0) == [(1.0, 3.0), (2.0, 3.0)]


def test_groups_within_ranks():
    def sum_over_pairs():
        dist.init_process_group("gloo")
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        total = torch.tensor(float(rank()))
        dist.all_reduce(total, group=groups[rank() // 2])
        return total.item()

    assert run_on_ranks(sum_over_pairs, 4) == [1.0, 1.0, 5.0, 5.0]


def test_tensors_come_back():
    result = run_on_ranks(lambda: torch.full((300, 300), float(rank())), 2)
    torch.testing.assert_close(result[1], torch.ones(300, 300))


def test_ranks_compute_after_the_parent_used_its_threads():
    weight = torch.randn(512, 512, requires_grad=True)
    (weight @ weight).sum().backward()

    def gradient_norm():
        mine = weight.detach().clone().requires_grad_()
        (mine @ mine).sum().backward()
        return mine.grad.norm().item()

    assert run_on_ranks(gradient_norm, 2, timeout_s=30) == pytest.approx([weight.grad.norm().item()] * 2, rel=1e-5)


def test_failure_names_the_rank_and_keeps_the_exception():
    def fail_on_one():
        if rank() == 1:
            raise LayoutError(["layers (3)", "heads (5)"])
        time.sleep(30)

    start_s = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*fail_on_one.*heads \(5\)") as caught:
        run_on_ranks(fail_on_one, 2)
    assert caught.value.rank == 1
    assert isinstance(caught.value.exception, LayoutError)
    assert caught.value.exception.problems == ("layers (3)", "heads (5)")
    assert time.monotonic() - start_s < 10


def test_the_first_failure_is_reported_not_its_consequence():
    def abandon_the_others():
        dist.init_process_group("gloo")
        if rank() == 2:
            raise ValueError("the cause")
        dist.barrier()

    with pytest.raises(RankError, match="the cause"):
        run_on_ranks(abandon_the_others, 3)


def test_exception_that_does_not_pickle_keeps_its_traceback():
    class LocalError(Exception):
        pass

    def fail():
        raise LocalError("only here")

    with pytest.raises(RankError, match="LocalError: only here") as caught:
        run_on_ranks(fail, 1)
    assert caught.value.exception is None


def test_result_that_does_not_pickle_is_a_failure():
    with pytest.raises(RankError, match="pickle"):
        run_on_ranks(lambda: lambda: None, 1)


def test_death_by_signal_is_named():
    with pytest.raises(RankError, match="killed by SIGKILL"):
        run_on_ranks(lambda: os.kill(os.getpid(), signal.SIGKILL), 1)


def test_death_while_sending_is_named(monkeypatch):
    def send_half(connection, message):
        connection._send(struct.pack("!i", len(message)) + bytes(message[: len(message) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Connection, "_send_bytes", send_half)  # which the forks inherit
    with pytest.raises(RankError, match="killed by SIGKILL"):
        run_on_ranks(lambda: "a result", 1)


def test_buffers_of_killed_ranks_do_not_stay():
    def die():
        Path(f"/dev/shm/deepspeed_allreduce_buffer_0_127.0.0.1_{os.environ['MASTER_PORT']}_0").touch()
        Path(f"/dev/shm/deepspeed_allreduce_buffer_0_127.0.0.1_{os.environ['MASTER_PORT']}9_0").touch()
        return int(os.environ["MASTER_PORT"])

    (port,) = run_on_ranks(die, 1)
    left = [path.name for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}*")]
    Path(f"/dev/shm/deepspeed_allreduce_buffer_0_127.0.0.1_{port}9_0").unlink()
    assert left == [f"deepspeed_allreduce_buffer_0_127.0.0.1_{port}9_0"]


def test_hang_is_killed_at_the_limit():
    def hang():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "60"])
        if rank() == 1:
            time.sleep(60)

    start_s = time.monotonic()
    with pytest.raises(RankTimeoutError, match=r"ranks \[1\] had not finished after 1 s") as caught:
        run_on_ranks(hang, 2, timeout_s=1)
    assert caught.value.ranks == (1,)
    assert time.monotonic() - start_s < 15


def test_ranks_die_with_their_parent(tmp_path):
    pids = tmp_path / "pids"
    script = f"""
import os, time
from chinchilla_ds.testing import run_on_ranks

def hang():
    with open({str(pids)!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(60)

run_on_ranks(hang, 2, preload=())
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, timeout_s=30)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))


def test_world_size_must_be_positive():
    with pytest.raises(ValueError, match=r"world_size \(0\) must be at least 1"):
        run_on_ranks(rank, 0)
