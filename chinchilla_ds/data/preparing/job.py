"""One preparation: the request, the place where it is built, and the worker pool."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chinchilla_ds.data.preparing.recipe import Recipe
from chinchilla_ds.data.reading.sources import Corpus, Progress
from chinchilla_ds.processes.pool import Workers

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One preparation."""

    recipe: Recipe
    corpora: tuple[Corpus, ...]
    """The sources, in the order of their names."""
    key: str
    work: Path
    final: Path
    progress: Progress
    workers: Workers

    @property
    def result(self) -> Path:
        """Where the complete result is kept until it is moved to `final`."""
        return self.work / "result"


def run_tasks(
    job: Job, /, function: Callable[[T], Any], tasks: Sequence[T], *, stage: str, size: Callable[[T], float]
) -> list[tuple[T, Any]]:
    """Run tasks on the workers and report the progress.

    Args:
        job: the preparation, which has the workers.
        function: called with each task in a worker.
        tasks: the tasks.
        stage: the stage's name, for the progress.
        size: returns the size of a task, for the progress.
    """
    job.progress(stage, 0.0)
    total, done, results = sum(size(task) for task in tasks) or 1, 0.0, []
    for task, result in job.workers.run(function, tasks):
        results.append((task, result))
        done += size(task)
        job.progress(stage, done / total)
    job.progress(stage, 1.0)
    return results
