"""The request for a run: from a command line, a search over mixtures or a script to `runs.train`."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.config import CheckpointConfig, DataConfig, GuardConfig, RunConfig
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.structured import build, parse_json

_FREE_PARTS = (DataConfig, GuardConfig, CheckpointConfig)
BESIDE_A_PLAN = {"output", "run_name", "sample_interval_tokens"} | {
    field.name for part in _FREE_PARTS for field in dataclasses.fields(part)
}
"""Fields that a plan does not fix."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """A requested run."""

    config: RunConfig
    ds_config: Path | Mapping[str, Any]
    """The DeepSpeed JSON: a file, or its content."""
    plan: Path | RunPlan | None = None
    """A plan to run unchanged, instead of making one; a file, or the plan itself."""
    explicit: frozenset[str] = frozenset()
    """Names of the config fields, and of those of its parts, that were set explicitly."""
    dry_run: bool = False
    """Whether to plan and check only, without writing anything."""
    words: Callable[[str], str] = dataclasses.field(default=str, compare=False)
    """Translates a message that names fields for the caller: into flags on a command line."""


def checked_config(config: RunConfig | None, /) -> RunConfig:
    """Return a script's config with its paths as Path; None is the default one.

    Raises:
        ConfigError: all fields of another type, or out of range.
    """
    if config is None:
        return RunConfig()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"the config is a {type(config).__name__}; it must be a RunConfig")
    try:
        text = json.dumps(dataclasses.asdict(config), default=str)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config holds a value that is not plain data: {error}") from None
    checked: RunConfig = build(RunConfig, parse_json(text, where="the config"), where="config")
    return checked


def set_fields(config: RunConfig, /) -> frozenset[str]:
    """Return the names of the fields of a config, and of those of its parts, that are not at their defaults."""
    names: set[str] = set()
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(RunConfig(), field.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, PluginSpec):
            names |= {
                part.name
                for part in dataclasses.fields(default)
                if getattr(value, part.name) != getattr(default, part.name)
            }
        elif value != default:
            names.add(field.name)
    return frozenset(names)
