"""What is to be trained: what a command line, a search over mixtures or a script asks `runs.train` for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.config import CheckpointConfig, DataConfig, GuardConfig, RunConfig
from chinchilla_ds.run_plan import RunPlan

_FREE_PARTS = (DataConfig, GuardConfig, CheckpointConfig)
BESIDE_A_PLAN = {"output", "sample_interval_tokens"} | {
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


def flag_of(field: str) -> str:
    """Return the flag that sets a config field."""
    named = {"compute_budget_flops": "--flops", "num_params": "--params", "num_tokens": "--tokens", "paths": "--data"}
    return named.get(field, "--" + field.replace("_", "-"))
