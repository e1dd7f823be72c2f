"""Records on disk: sorted runs written whole or not at all, and tasks that run in any number of processes.

A stage writes one run per task, sorted by its field `key`; the next stage's tasks each read one range of keys from all
runs. So no task holds more than its input run or its range, and no result depends on which process did what.
"""

import multiprocessing
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.files import save_array, whole_file

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""


@contextmanager
def written(path: Path, /) -> Iterator[Path]:
    """Yield the path of a file to be written, which is named `path` when it is whole.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as aside:
            yield aside
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {reason(error)}; deduplication goes on from here when run again"
        ) from error


def write_array(path: Path, /, values: NDArray[Any]) -> None:
    """Write an array, whole.

    Raises:
        OutputError: as of `written`.
    """
    with written(path) as aside:
        save_array(aside, values)


def read_range(paths: Iterable[Path], /, *, low: int, high: int, row: int | None = None) -> NDArray[Any]:
    """Return the records of all runs with low <= key < high, run after run.

    Args:
        paths: Runs of records sorted by their field `key`: [records], or [rows, records].
        low: First key.
        high: First key that is no longer read; 2^64 reads to the end.
        row: Which row of the runs, where they have rows.
    """
    found = []
    for path in paths:
        run = np.load(path, mmap_mode="r")
        records = run if row is None else run[row]
        first, last = (bisect_left(records, bound, key=lambda record: int(record["key"])) for bound in (low, high))
        found.append(np.array(records[first:last]))
    return np.concatenate(found)


def key_range(index: int, /, *, number: int) -> tuple[int, int]:
    """Return the bounds of one of `number` equal ranges of the 64-bit keys."""
    return 2**64 * index // number, 2**64 * (index + 1) // number


class Workers:
    """Runs the tasks of one stage after the other, in this process or in several."""

    def __init__(self, *, num_workers: int, progress: Progress | None) -> None:
        self._num_workers = num_workers
        self._progress = progress or (lambda stage, share: None)
        self._pool: Executor | None = None

    def __enter__(self) -> "Workers":
        if self._num_workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_workers, mp_context=context, initializer=_end_with_parent)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, stage: str, task: Callable[[int], None], outputs: Sequence[Path]) -> None:
        """Call `task` with the index of each output that is not there yet; the task writes it.

        Raises:
            DataError: a worker process was killed.
        """
        missing = [index for index, path in enumerate(outputs) if not path.exists()]
        for done, _ in enumerate(self._calls(task, missing), start=len(outputs) - len(missing) + 1):
            self._progress(stage, done / len(outputs))

    def _calls(self, task: Callable[[int], None], indices: Sequence[int]) -> Iterator[None]:
        if self._pool is None:
            yield from map(task, indices)
            return
        try:
            for future in as_completed([self._pool.submit(task, index) for index in indices]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process of the deduplication was killed, for want of memory perhaps; run again to go on"
                " from what is done, with fewer workers if it happens again"
            ) from error


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is gone, even if that was killed."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
