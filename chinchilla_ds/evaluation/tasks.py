"""Benchmark tasks through lm-eval, on a model loaded by `transformers`; needs the extra `chinchilla-ds[eval]`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.structured import read_bytes

BATCH_SIZE = 8
"""Requests per forward pass."""


def open_tasks(names: Sequence[str], *, include_path: Path | None) -> Any:
    """Return lm-eval's manager of the available tasks.

    Args:
        names: Tasks, groups or tags.
        include_path: A folder of task files (YAML) in addition to lm-eval's own.

    Raises:
        ConfigError: lm-eval is not installed, or a name is not one of its tasks.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"`tasks` needs lm-eval, and importing it fails: {error}; install it with pip install 'chinchilla-ds[eval]'"
        ) from None
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"`include_path={include_path}` is not a folder; name one that holds task files (.yaml)")
    if include_path is not None:
        _check_task_files(include_path)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = manager.all_tasks
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            [f"`tasks`: {name!r} is not a task of lm-eval{_nearest(name, known, include_path)}" for name in unknown]
        )
    return manager


def _check_task_files(folder: Path) -> None:
    """Check the YAML of task files, of which lm-eval silently skips unreadable ones; nothing is constructed.

    Raises:
        ConfigError: names every file that is not YAML.
    """
    import yaml  # type: ignore[import-untyped]

    problems: list[str] = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(read_bytes(path, what="the task file"), Loader=yaml.SafeLoader)
        except ConfigError as error:
            problems += error.problems
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            problems.append(f"the task file {path} is not YAML: {' '.join(str(error).split()):.200}")
    if problems:
        raise ConfigError(problems)


def _nearest(name: str, known: Sequence[str], include_path: Path | None) -> str:
    if near := did_you_mean(name, known):
        return near
    return "" if include_path is not None else "; a task of your own is found with `include_path=FOLDER`"


def run_tasks(
    folder: Path,
    /,
    *,
    names: Sequence[str],
    manager: Any,
    device: str,
    dtype: str,
    limit: int | None = None,
    add_bos_token: bool = False,
) -> dict[str, dict[str, float]]:
    """Return the metrics of every task and group, by name.

    Args:
        folder: Model and tokenizer in the format of `transformers`.
        names: Tasks, groups or tags known to `manager`.
        manager: The result of `open_tasks`.
        device: Torch's name of the device.
        dtype: Torch's name of the weights' type.
        limit: The most examples of each task; None: all.
        add_bos_token: Whether texts begin with the tokenizer's BOS.

    Raises:
        ConfigError: a task's data is not available, or its file is invalid for lm-eval.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(pretrained=str(folder), dtype=dtype, device=device, batch_size=BATCH_SIZE, add_bos_token=add_bos_token)
    try:
        results = simple_evaluate(
            model, tasks=list(names), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
        )
    except (OSError, ConnectionError, ValueError, DatasetsError) as error:  # unavailable data
        raise ConfigError(
            f"`tasks`: lm-eval cannot run {', '.join(names)}: {_first_line(error)}; offline, name task files whose "
            "data is on this machine with `include_path`"
        ) from error
    except (KeyError, TypeError, AttributeError, ImportError, TemplateError) as error:  # invalid task file
        raise ConfigError(
            f"`tasks`: lm-eval cannot run {', '.join(names)}: {type(error).__name__}: {_first_line(error)}; check "
            "the task's file and its data"
        ) from error
    assert results is not None, "lm-eval returns results on the one rank that runs it"
    return {task: _metrics(values) for task, values in results["results"].items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return `acc: 0.5` for lm-eval's `acc,none: 0.5`, without standard errors, which need resampling.

    Keys without a comma are counts and names.
    """
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, int | float) and "_stderr" not in key
    }
