"""The lock under which extensions are loaded ends with its holder."""

import os
import signal
import time

import pytest
from torch.utils.file_baton import FileBaton

from chinchilla_ds.distributed.build_lock import KernelBaton


def hold_in_a_child(path):
    """Fork a process that takes the lock and sleeps; return its id once it has it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"1" if KernelBaton(path).try_acquire() else b"0")
        time.sleep(60)
        os._exit(0)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    os.close(writer)
    return child


def test_one_holder_at_a_time_and_no_file_stays(tmp_path):
    path = str(tmp_path / "lock")
    first, second = KernelBaton(path), KernelBaton(path)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert os.listdir(tmp_path) == []
    second.wait()
    assert second.try_acquire()
    second.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.timeout(20)
def test_a_killed_holder_holds_nothing(tmp_path):
    path = str(tmp_path / "lock")
    child = hold_in_a_child(path)
    waiting = KernelBaton(path)
    assert not waiting.try_acquire(), "control: the holder is alive"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.path.exists(path)
    assert not FileBaton(path).try_acquire(), "control: torch's own lock is held for ever"
    waiting.wait()
    assert waiting.try_acquire()
    waiting.release()
