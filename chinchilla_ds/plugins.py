"""Plugins from outside this package: callbacks, objectives, optimizers, scaling laws and hardware.

A name is either one that an installed package declares as an entry point of the kind's group, or `module:object`,
which is imported from Python's path. Arguments follow the name: `my.module:Early,patience=5`. The specification is
plain data (`PluginSpec`), which plan, request and checkpoint store; the object is only loaded where it is used.
"""

import importlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.structured import parse_json

Argument = str | int | float | bool | None

_KEY = re.compile(r"[a-z_][a-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*(:[A-Za-z_][A-Za-z0-9_.]*)?")


class Kind(StrEnum):
    """Kinds of plugins; the value is the last part of the entry points' group."""

    CALLBACK = "callbacks"
    OBJECTIVE = "objectives"
    OPTIMIZER = "optimizers"
    LAW = "laws"
    HARDWARE = "hardware"

    @property
    def group(self) -> str:
        """Name of the entry points' group."""
        return f"chinchilla_ds.{self.value}"


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """A name and its arguments, as given on a command line and stored in plans and checkpoints."""

    name: str
    """Name of an entry point or of one of ours, or `module:object`."""
    arguments: Mapping[str, Argument] = field(default_factory=dict, hash=False)
    """Keyword arguments of the object."""

    def __post_init__(self) -> None:
        """Check the name and the arguments.

        Raises:
            ValueError: the name is invalid, or an argument has an invalid name or is non-finite.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is neither a name nor module:object")
        for key, value in self.arguments.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a valid argument name: lower-case letters, digits and underscores")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}, which is not finite")

    def __hash__(self) -> int:
        """Hash what identifies it: plans, which hold one, are keys of caches."""
        return hash(str(self))

    def __str__(self) -> str:
        """Return it in the command line's syntax."""
        return ",".join([self.name, *(f"{key}={_shown(value)}" for key, value in self.arguments.items())])


def parse_spec(text: str, /) -> PluginSpec:
    """Parse `NAME` or `module:object`, followed by any number of `,key=value`.

    Raises:
        ValueError: the text has another form.
    """
    name, *words = text.split(",")
    arguments: dict[str, Argument] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} after {name!r} is not key=value")
        if key in arguments:
            raise ValueError(f"{key} is given twice")
        arguments[key] = _value(value)
    return PluginSpec(name=name, arguments=arguments)


def _value(text: str) -> Argument:
    try:
        value = parse_json(text, where="argument", error=ConfigError)
    except ConfigError:
        return text
    return value if isinstance(value, str | int | float | bool | None) else text


def _shown(value: Argument) -> str:
    if isinstance(value, str) and _value(value) == value and isinstance(_value(value), str):
        return value  # plain text: quoted only where it would be read as something else
    return json.dumps(value)


def names(kind: Kind, /) -> tuple[str, ...]:
    """Return the names that installed packages declare."""
    return tuple(sorted(_announced(kind)))


def _announced(kind: Kind) -> dict[str, str]:
    """Return `module:object` of each entry point, by name."""
    from importlib import metadata  # slow, and planning needs it only for plugins

    return {point.name: point.value for point in metadata.entry_points(group=kind.group)}


def load(kind: Kind, name: str, /, *, ours: Mapping[str, str] | None = None) -> Any:
    """Import the object that a name refers to.

    Args:
        kind: The kind of plugin; named in messages.
        name: A name of `ours` or of an entry point, or `module:object`.
        ours: This package's own plugins, as `module:object` by name; they take precedence.

    Raises:
        ConfigError: there is no such name, module or object, or the module cannot be imported.
    """
    where = dict(ours or {})
    if name not in where and ":" not in name:
        where = _announced(kind) | where
    target = where.get(name, name)
    module_name, colon, path = target.partition(":")
    what = kind.value.removesuffix("s")
    if not colon:
        listed = f"there are {', '.join(sorted(where))}; " if where else ""
        guess = did_you_mean(name, tuple(where))
        raise ConfigError(f"{what} {name!r} is unknown{guess}; {listed}name one of your own as module:object")
    try:
        loaded: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{what} {name!r}: {module_name} cannot be imported: {error}; install it, or add its folder to PYTHONPATH"
        ) from None
    for part in path.split("."):
        if not hasattr(loaded, part):
            raise ConfigError(f"{what} {name!r}: {module_name} has no {path}{did_you_mean(part, dir(loaded))}")
        loaded = getattr(loaded, part)
    return loaded


def find_object(kind: Kind, text: str, /, *, kind_of: type) -> Any:
    """Return the object that a text names: itself an instance of `kind_of`, or a function or class that makes one.

    Args:
        kind: The kind of plugin; named in messages.
        text: A name of an entry point, or `module:object`; the arguments of a function follow, `,key=value`.
        kind_of: What it must be.

    Raises:
        ConfigError: it cannot be loaded, or is something else.
    """
    what = kind.value.removesuffix("s")
    try:
        spec = parse_spec(text)
    except ValueError as error:
        raise ConfigError(f"{what} {text!r}: {error}") from None
    loaded = load(kind, spec.name)
    if isinstance(loaded, kind_of) and spec.arguments:
        raise ConfigError(f"{what} {text}: {spec.name} is not a function, so it takes no arguments")
    made = loaded if isinstance(loaded, kind_of) else make(kind, spec)
    if not isinstance(made, kind_of):
        raise ConfigError(f"{what} {text} is a {type(made).__name__}; it must be a {kind_of.__name__}, or return one")
    return made


def make(kind: Kind, spec: PluginSpec, /, *, ours: Mapping[str, str] | None = None) -> Any:
    """Load the object that a spec names and call it with the spec's arguments.

    Args:
        kind: the kind of plugin; named in messages.
        spec: name and arguments.
        ours: this package's own plugins, as `module:object` by name; they take precedence.

    Raises:
        ConfigError: it cannot be loaded, or does not take these arguments.
    """
    factory = load(kind, spec.name, ours=ours)
    what = kind.value.removesuffix("s")
    if not callable(factory):
        raise ConfigError(f"{what} {spec.name!r} is a {type(factory).__name__}, not a class or function")
    try:
        inspect.signature(factory).bind(**spec.arguments)
    except TypeError as error:
        raise ConfigError(f"{what} {spec}: {error}; it takes {inspect.signature(factory)}") from None
    return factory(**spec.arguments)
