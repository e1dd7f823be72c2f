"""Records on disk: sorted runs written atomically, and tasks that run in any number of processes.

A stage writes one run per task, sorted by its field `key`; the next stage's tasks each read one range of keys from all
runs. So no task holds more than its input run or its range, and no result depends on which process did what.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.files import save_array, whole_file
from chinchilla_ds.processes.pool import Workers

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""


@contextmanager
def written(path: Path, /) -> Iterator[Path]:
    """Yield a temporary path to write to; the complete file is then renamed to `path`.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as aside:
            yield aside
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {reason(error)}; deduplication resumes from here when run again"
        ) from error


def write_array(path: Path, /, values: NDArray[Any]) -> None:
    """Write an array, completely or not at all.

    Raises:
        OutputError: see `written`.
    """
    with written(path) as aside:
        save_array(aside, values)


def read_range(paths: Iterable[Path], /, *, low: int, high: int, row: int | None = None) -> NDArray[Any]:
    """Return the records of all runs with low <= key < high, run after run.

    Args:
        paths: Runs of records sorted by their field `key`: [records], or [rows, records].
        low: First key.
        high: End of the keys, exclusive; 2^64 reads to the end.
        row: The row of the runs to read, if they have rows.
    """
    ranges = []
    for path in paths:
        run = np.load(path, mmap_mode="r")
        records = run if row is None else run[row]
        first, last = (bisect_left(records, bound, key=lambda record: int(record["key"])) for bound in (low, high))
        ranges.append(np.array(records[first:last]))
    return np.concatenate(ranges)


def key_range(index: int, /, *, number: int) -> tuple[int, int]:
    """Return the bounds of one of `number` equal ranges of the 64-bit keys."""
    return 2**64 * index // number, 2**64 * (index + 1) // number


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Runs one stage after another on the workers, skipping tasks whose output exists."""

    workers: Workers
    progress: Progress

    def run(self, stage: str, task: Callable[[int], None], outputs: Sequence[Path]) -> None:
        """Call `task` with the index of each missing output; the task writes it.

        Args:
            stage: Name of the stage, for the progress.
            task: A picklable function, which a worker calls.
            outputs: One file per task.

        Raises:
            WorkerError: a worker process was killed.
        """
        missing = [index for index, path in enumerate(outputs) if not path.exists()]
        for done, _ in enumerate(self.workers.run(task, missing), start=len(outputs) - len(missing) + 1):
            self.progress(stage, done / len(outputs))
