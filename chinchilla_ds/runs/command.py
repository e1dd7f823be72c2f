"""What is to be trained: what a command line, a search over mixtures or a script asks `runs.train` for."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.config import CheckpointConfig, DataConfig, GuardConfig, RunConfig
from chinchilla_ds.run_plan import RunPlan

_FREE_PARTS = (DataConfig, GuardConfig, CheckpointConfig)
BESIDE_A_PLAN = {"output", "run_name", "sample_interval_tokens"} | {
    field.name for part in _FREE_PARTS for field in dataclasses.fields(part)
}
"""Fields that a plan does not fix."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """A run that is asked for."""

    config: RunConfig
    ds_config: Path | Mapping[str, Any]
    """The DeepSpeed JSON: a file, or its content."""
    plan: Path | RunPlan | None = None
    """A plan to run as it is, instead of making one; a file, or the plan itself."""
    explicit: frozenset[str] = frozenset()
    """Names of the config fields that somebody has set, and of those of its parts."""
    dry_run: bool = False
    """Whether to plan and check alone, and to write nothing."""
    words: Callable[[str], str] = dataclasses.field(default=str, compare=False)
    """Puts a message, which names fields, into the words of whoever asked: a command line's into flags."""


def set_fields(config: RunConfig, /) -> frozenset[str]:
    """Return the names of the fields of a config, and of those of its parts, that are not at their defaults."""
    names: set[str] = set()
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(RunConfig(), field.name)
        if dataclasses.is_dataclass(default):
            names |= {
                part.name
                for part in dataclasses.fields(default)
                if getattr(value, part.name) != getattr(default, part.name)
            }
        elif value != default:
            names.add(field.name)
    return frozenset(names)
