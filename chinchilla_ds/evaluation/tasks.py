"""Benchmark tasks through lm-eval, on a model as `transformers` reads it; needs the extra `chinchilla-ds[eval]`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import ConfigError, did_you_mean

BATCH_SIZE = 8
"""Requests of one forward pass."""


def open_tasks(names: Sequence[str], *, include_path: Path | None) -> Any:
    """Return lm-eval's manager of the tasks that there are.

    Args:
        names: Tasks, groups or tags.
        include_path: A folder of task files (YAML) beside those that lm-eval brings.

    Raises:
        ConfigError: lm-eval is not installed, or a name is none of its tasks.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-eval, and importing it fails: {error}; install it with pip install 'chinchilla-ds[eval]'"
        ) from None
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include-path {include_path} is no folder; name one that holds task files (.yaml)")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = manager.all_tasks
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            [f"--tasks: {name!r} is no task of lm-eval{_nearest(name, known, include_path)}" for name in unknown]
        )
    return manager


def _nearest(name: str, known: Sequence[str], include_path: Path | None) -> str:
    if near := did_you_mean(name, known):
        return near
    return "" if include_path is not None else "; a task of your own is found with --include-path FOLDER"


def run_tasks(
    folder: Path, /, *, names: Sequence[str], manager: Any, device: str, dtype: str, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of every task and group, by name.

    Args:
        folder: Model and tokenizer, as `transformers` reads them.
        names: Tasks, groups or tags, which `manager` knows.
        manager: What `open_tasks` returned.
        device: In torch's words.
        dtype: Of the weights, in torch's words.
        limit: Examples of each task at most; None: all.

    Raises:
        ConfigError: a task's data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(pretrained=str(folder), dtype=dtype, device=device, batch_size=BATCH_SIZE)
    try:
        found = simple_evaluate(
            model, tasks=list(names), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
        )
    except (OSError, ConnectionError, ValueError) as error:  # what `datasets` raises of data that is not to be had
        raise ConfigError(
            f"--tasks: lm-eval cannot run {', '.join(names)}: {error}; offline, name task files whose data is on this "
            "machine with --include-path"
        ) from error
    assert found is not None, "lm-eval returns results on the one rank that runs it"
    return {task: _metrics(values) for task, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return `acc: 0.5` of what lm-eval calls `acc,none: 0.5`, without standard errors, which need resampling.

    Keys without a comma are counts and names.
    """
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, int | float) and "_stderr" not in key
    }
