"""Worker processes that exit with the process that started them, however that exits."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import TypeVar

from chinchilla_ds.errors import WorkerError

T = TypeVar("T")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes, started with the first task; a single worker runs in this process instead.

    One pool serves all stages of a preparation. Its processes are spawned, not forked: the caller may hold threads and
    process groups.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[T], R], tasks: Sequence[T], /) -> Iterator[tuple[T, R]]:
        """Yield each task and the result of `function`, as they finish; tasks start in the given order.

        Raises:
            WorkerError: a worker process was killed.
        """
        if self.num_workers == 1 or len(tasks) <= 1:
            for task in tasks:
                yield task, function(task)
            return
        try:
            yield from self._run(function, tasks)
        except BrokenProcessPool:
            raise WorkerError(
                "a worker process was killed, perhaps by the system because memory ran out; run the same again to "
                "resume from here, with fewer `workers`"
            ) from None

    def _run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[T, R]]:
        pool, left = self._start(), iter(tasks)
        running: dict[Future[R], T] = {}
        try:
            while True:
                while len(running) < 2 * self.num_workers and (task := next(left, None)) is not None:
                    running[pool.submit(function, task)] = task
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            for future in running:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
            )
        return self._pool

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL (Linux)."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
