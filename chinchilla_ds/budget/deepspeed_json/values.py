"""Kinds of values in the DeepSpeed JSON: a check, and its wording in messages.

Whole numbers may be written as 5e8, as they often are.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """The set of valid values of a key."""

    text: str
    """Its wording in a message: "it must be ..."."""
    accepts: Callable[[Any], bool]
    is_whole: bool = False
    """Whether 5e8 is passed on as 500000000."""


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int, most: int | None = None) -> ValueKind:
    """Return the kind of whole numbers from `least` to `most`, inclusive; None: no upper bound."""
    text = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"

    def accepts(value: Any) -> bool:
        return is_number(value) and value == int(value) and least <= value and (most is None or value <= most)

    return ValueKind(text=text, accepts=accepts, is_whole=True)


def number(least: float, most: float | None = None) -> ValueKind:
    """Return the kind of numbers from `least` to `most`, inclusive; None: no upper bound."""
    text = f"a number of at least {least:g}" if most is None else f"a number from {least:g} to {most:g}"
    return ValueKind(
        text=text, accepts=lambda value: is_number(value) and least <= value and (most is None or value <= most)
    )


def one_of(*choices: str) -> ValueKind:
    """Return the kind of these strings, in any case."""
    return ValueKind(
        text=f"one of {', '.join(choices)}",
        accepts=lambda value: isinstance(value, str) and value.lower() in {choice.lower() for choice in choices},
    )


BOOL = ValueKind(text="true or false", accepts=lambda value: isinstance(value, bool))
TEXT = ValueKind(text="text", accepts=lambda value: isinstance(value, str) and "\0" not in value)
POSITIVE = ValueKind(text="a number above 0", accepts=lambda value: is_number(value) and value > 0)
TEXTS = ValueKind(
    text="a list of texts",
    accepts=lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
BETAS = ValueKind(
    text="a list of two numbers",
    accepts=lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_number, value)),
)
OBJECT = ValueKind(text="a JSON object", accepts=lambda value: isinstance(value, Mapping))
ANYTHING = ValueKind(text="anything", accepts=lambda value: True)
"""Any value; checked elsewhere, if at all."""


def same(given: Any, planned: Any, /) -> bool:
    """Return whether two JSON values are equivalent: 1 and 1.0, "AdamW" and "adamw", but not 1 and true."""
    if isinstance(given, bool) or isinstance(planned, bool):
        return given is planned
    if isinstance(given, str) and isinstance(planned, str):
        return given.lower() == planned.lower()
    if isinstance(given, list) and isinstance(planned, list):
        return len(given) == len(planned) and all(same(left, right) for left, right in zip(given, planned, strict=True))
    if isinstance(given, int | float) and isinstance(planned, int | float):
        return math.isclose(given, planned, rel_tol=1e-9)
    return bool(given == planned)


def is_auto(value: Any, /) -> bool:
    """Return whether the JSON leaves the value to the plan."""
    return value is None or value == AUTO


def show(value: Any, /) -> str:
    """Return a value as JSON, truncated if long."""
    if value is None:
        return "unset"
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
