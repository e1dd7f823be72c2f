"""Ranges of dataclass fields: `Annotated[int, Ge(1), Le(8)]` is a whole number from 1 to 8. `typed.build` checks them.

Markers of the names and meaning of the package annotated-types, here because planning needs nothing but Python.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gt:
    """Above `gt`."""

    gt: float


@dataclass(frozen=True)
class Ge:
    """At least `ge`."""

    ge: float


@dataclass(frozen=True)
class Lt:
    """Below `lt`."""

    lt: float


@dataclass(frozen=True)
class Le:
    """At most `le`."""

    le: float


@dataclass(frozen=True)
class MultipleOf:
    """A multiple of `multiple_of`."""

    multiple_of: int


@dataclass(frozen=True)
class Len:
    """Text of `min_length` to `max_length` characters; None: unlimited."""

    min_length: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class MinLen:
    """Text of at least `min_length` characters."""

    min_length: int
