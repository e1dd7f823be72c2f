"""Callbacks from outside this package: created by name, with their state in the checkpoints."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.plugins import Kind, PluginSpec, make
from chinchilla_ds.structured import parse_json
from chinchilla_ds.training.callback import Callback, name_of


def make_callbacks(specs: Sequence[PluginSpec], /) -> dict[str, Callback]:
    """Return the callbacks that a plan names, by name and arguments.

    Raises:
        ConfigError: one cannot be loaded, does not take its arguments, is not a callback, or is named twice.
    """
    made: dict[str, Callback] = {}
    for spec in specs:
        if str(spec) in made:
            raise ConfigError(f"callback {spec} is given twice; once is enough")
        callback = make(Kind.CALLBACK, spec)
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callback {spec} is a {type(callback).__name__}; it must be a subclass of chinchilla_ds.Callback"
            )
        made[str(spec)] = callback
    return made


def with_state(callbacks: Iterable[Callback], /) -> dict[str, Callback]:
    """Return those callbacks of a script that have a state, by `module:Class`; a second of a class gets a number."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        if type(callback).state_dict is Callback.state_dict:
            continue
        name, number = name_of(callback), 1
        while name in named:
            number += 1
            name = f"{name_of(callback)} ({number})"
        named[name] = callback
    return named


def states_of(callbacks: Mapping[str, Callback], /) -> dict[str, dict[str, Any]]:
    """Return the state of every callback as plain data, a copy.

    Raises:
        ConfigError: one cannot be represented in JSON.
    """
    states: dict[str, dict[str, Any]] = {}
    for name, callback in callbacks.items():
        state = callback.state_dict()
        if not isinstance(state, dict):
            raise ConfigError(f"callback {name}: state_dict() returned a {type(state).__name__}; it must be a dict")
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"callback {name}: state_dict() returned what JSON cannot hold: {error}") from None
        states[name] = parse_json(text, where=f"state of callback {name}")
    return states


def check_same(names: Iterable[str], saved: Iterable[str], *, where: Path) -> None:
    """Check that a run resumes with the callbacks that it was trained with.

    Args:
        names: Names of the current callbacks.
        saved: Names of those in the checkpoint.
        where: The checkpoint.

    Raises:
        CheckpointError: they differ; both are named.
    """
    here, there = list(names), list(saved)
    if sorted(here) != sorted(there):
        raise CheckpointError(
            f"`callbacks` are {_listed(here)} here and {_listed(there)} in the checkpoint {where}; give the same to "
            "resume that run, or start another with `checkpoint.resume=none`"
        )


def load_states(callbacks: Mapping[str, Callback], saved: Mapping[str, dict[str, Any]], *, where: Path) -> None:
    """Restore every callback's state from a checkpoint; raises as `check_same` does.

    Args:
        callbacks: the current callbacks, by name.
        saved: the states in the checkpoint, by name.
        where: the checkpoint.
    """
    check_same(callbacks, saved, where=where)
    for name, callback in callbacks.items():
        callback.load_state_dict(saved[name])


def _listed(names: Sequence[str]) -> str:
    return " ".join(names) or "none"
