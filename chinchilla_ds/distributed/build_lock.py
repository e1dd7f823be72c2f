"""A lock for C++ extensions that is released when its holder exits.

Corrects torch 2.13: `torch.utils.file_baton.FileBaton` uses the mere existence of a file as a lock, so a process that
is killed while it loads an extension (which every rank does at its start) makes every later process wait permanently.
"""

import fcntl
import inspect
import os
from contextlib import suppress

from torch.utils import cpp_extension, file_baton

from chinchilla_ds.distributed.dependency_check import require_source


class KernelBaton:
    """FileBaton with the kernel's file lock; the file left by a killed process has no effect."""

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None) -> None:
        """Store the path of the lock's file.

        Args:
            lock_file_path: the lock's file.
            wait_seconds: FileBaton's; unused, since waiting does not poll.
            warn_after_seconds: FileBaton's; unused.
        """
        self.lock_file_path = lock_file_path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether it was."""
        return self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait(self) -> None:
        """Wait until the holder has released the lock, or has exited."""
        if self._acquire(fcntl.LOCK_EX):
            self.release()

    def release(self) -> None:
        """Release the lock and remove its file, which torch's own baton would treat as a lock."""
        assert self._descriptor is not None, "the lock is not held"
        with suppress(FileNotFoundError):
            os.remove(self.lock_file_path)
        os.close(self._descriptor)
        self._descriptor = None

    def _acquire(self, how: int) -> bool:
        while True:
            descriptor = os.open(self.lock_file_path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(descriptor, how)
                if os.path.samestat(os.fstat(descriptor), os.stat(self.lock_file_path)):
                    self._descriptor, descriptor = descriptor, -1
                    return True
            except BlockingIOError:
                return False
            except FileNotFoundError:  # the holder has removed it: try again
                pass
            finally:
                if descriptor >= 0:
                    os.close(descriptor)


def install() -> None:
    """Have torch load extensions under this lock.

    Raises:
        DependencyChangedError: torch's lock is no longer a file's existence, or is used differently.
    """
    if vars(cpp_extension)["FileBaton"] is KernelBaton:
        return
    require_source(inspect.getsource(file_baton.FileBaton), "os.O_CREAT | os.O_EXCL", what="torch's FileBaton")
    require_source(inspect.getsource(cpp_extension), "baton.try_acquire()", what="torch's cpp_extension")
    setattr(cpp_extension, "FileBaton", KernelBaton)  # noqa: B010 - a name that torch does not export
