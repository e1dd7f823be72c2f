"""From plain data, as JSON and YAML hold it, to dataclasses: strict types, ranges, and every problem at once.

No 1.0 or "1" stands for 1, no true for a number; a whole number may stand for a float. Fields may be numbers, text,
paths, enumerations, literals, dataclasses, None, unions of these, and tuples, frozensets and mappings of them. Ranges
stand in the dataclass as `Annotated[int, Ge(1)]`, cross-checks in its `__post_init__` as ValueError.

pydantic would do the same and is the second implementation in the tests; planning must work without any package.
"""

import collections.abc
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import ChinchillaError, ConfigError, did_you_mean

SHOWN_CHARACTERS = 80
"""Characters of a value in a message."""

Read = Callable[[Any, str, list[str]], Any]
"""From a value, its place and the list that receives problems to the field's value; INVALID if it adds a problem."""
INVALID: Any = object()


def build(cls: Any, data: Any, *, where: str, error: type[ChinchillaError] = ConfigError) -> Any:
    """Build a dataclass, including nested ones, from plain data.

    Args:
        cls: A dataclass.
        data: What `structured.read_json` or `read_yaml` returned, or a part of it.
        where: What it is called in messages: `plan`, whose fields are then `plan.shape.num_layers`.
        error: The class of what is raised.

    Raises:
        ChinchillaError: as `error`, with every missing, unknown, mistyped and invalid field at once.
    """
    if not isinstance(data, dict):
        raise error(f"{where} must be an object of named fields, not {_kind(data)}")
    problems: list[str] = []
    try:
        built = _reader(cls)(data, where, problems)
    except ChinchillaError as invalid:  # of a dataclass that code makes too
        raise error([f"{where}: {problem}" for problem in invalid.problems]) from None
    if problems:
        raise error(sorted(problems))
    return built


def shown(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _refused(value: Any, place: str, problems: list[str], *, wanted: str) -> Any:
    problems.append(f"{place} is empty" if value == "" else f"{place} is {shown(value)}; it must be {wanted}")
    return INVALID


# ---- one reader per type ---------------------------------------------------------------------------------------------


@functools.cache
def _reader(kind: Any) -> Read:
    """Return the reader of a field's type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _scalar(parts[0], limits=parts[1:])
    if origin in (typing.Union, types.UnionType):
        return _union(parts)
    if origin is typing.Literal:
        return _one_of({value: value for value in parts})
    if origin is tuple:
        return _sequence(parts[0], make=tuple) if parts[1:] == (...,) else _fixed(parts)
    if origin is frozenset:
        return _sequence(parts[0], make=frozenset)
    if origin in (dict, collections.abc.Mapping):
        return _mapping(parts)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of({member.value: member for member in kind})
    if kind is Any:
        return _anything
    return _scalar(kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plain:
    """How a type without parts is read."""

    accepts: frozenset[type]
    wanted: str
    make: Callable[[Any], Any] | None = None


_PLAIN: dict[Any, _Plain] = {
    int: _Plain(accepts=frozenset({int}), wanted="a whole number"),
    float: _Plain(accepts=frozenset({int, float}), wanted="a number", make=float),
    str: _Plain(accepts=frozenset({str}), wanted="text"),
    bool: _Plain(accepts=frozenset({bool}), wanted="true or false"),
    Path: _Plain(accepts=frozenset({str}), wanted="text", make=Path),
    type(None): _Plain(accepts=frozenset({type(None)}), wanted="null"),
}


def _scalar(kind: Any, *, limits: Sequence[Any] = ()) -> "_Scalar":
    is_interval = all(getattr(limit, "multiple_of", None) is None for limit in limits)
    return _Scalar(plain=_PLAIN[kind], checks=tuple(_checks(limits)), is_interval=is_interval)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scalar:
    """Reads a value without parts."""

    plain: _Plain
    checks: tuple[tuple[Callable[[Any], bool], str], ...]
    """Checks of a value of the right type, with the rule to report if one fails."""
    is_interval: bool
    """Whether all between two values that pass do so too."""

    def __call__(self, value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) not in self.plain.accepts:
            return _refused(value, place, problems, wanted=self.plain.wanted)
        if isinstance(value, str) and "\0" in value:
            problems.append(f"{place} holds a NUL, which is not allowed")
            return INVALID
        for is_fine, wanted in self.checks:
            if not is_fine(value):
                return _refused(value, place, problems, wanted=wanted)
        return value if self.plain.make is None else self.plain.make(value)

    def accepts_all(self, values: list[Any], /) -> bool:
        """Return whether whole numbers within the limits stand there: columns of an index have millions of them."""
        if not self.is_interval or self.plain.accepts != {int} or set(map(type, values)) != {int}:
            return False
        return all(is_fine(extreme) for is_fine, _ in self.checks for extreme in (min(values), max(values)))


def _checks(limits: Sequence[Any]) -> Iterator[tuple[Callable[[Any], bool], str]]:
    """Yield the checks of the markers of `ranges`; annotated-types' have the same fields."""
    for limit in limits:
        bounds = {name: getattr(limit, name, None) for name in _BOUNDS}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        if not given:
            raise TypeError(f"{limit!r} is not a range of a field: see chinchilla_ds.ranges")
        for name, bound in given.items():
            is_fine, wanted = _BOUNDS[name]
            yield functools.partial(is_fine, bound), wanted(bound)


def _number(word: str) -> Callable[[Any], str]:
    return lambda bound: f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"


def _characters(word: str, bound: int) -> str:
    return f"{word} {bound} character" + ("s" if bound > 1 else "")


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any], str]]] = {
    "gt": (lambda bound, value: value > bound, _number("above")),
    "ge": (lambda bound, value: value >= bound, _number("at least")),
    "lt": (lambda bound, value: value < bound, _number("below")),
    "le": (lambda bound, value: value <= bound, _number("at most")),
    "multiple_of": (lambda bound, value: value % bound == 0, _number("a multiple of")),
    "min_length": (lambda bound, value: len(value) >= bound, lambda bound: f"text of {_characters('at least', bound)}"),
    "max_length": (lambda bound, value: len(value) <= bound, lambda bound: f"text of {_characters('at most', bound)}"),
}


def _anything(value: Any, place: str, problems: list[str], /) -> Any:
    problems += [f"{spot} holds a NUL, which is not allowed" for spot in _with_nul(value, place)]
    return value


def _with_nul(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, str):
        if "\0" in value:
            yield place
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _with_nul(name, f"a name in {place}")
            yield from _with_nul(item, f"{place}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _with_nul(item, f"{place}[{index}]")


def _one_of(members: Mapping[Any, Any]) -> Read:
    *others, last = map(repr, members)
    wanted = f"one of {', '.join(others)} or {last}" if others else last

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) in (str, int) and value in members:
            return members[value]
        return _refused(value, place, problems, wanted=wanted)

    return read


def _union(parts: tuple[Any, ...]) -> Read:
    """Return a reader that takes the first part that fits; what only one part can mean is refused in its words."""
    is_optional = type(None) in parts
    # a whole number that may be either stays whole
    readers = [
        _reader(part)
        for part in sorted((part for part in parts if part is not type(None)), key=lambda part: part is float)
    ]

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if value is None and is_optional:
            return None
        for reader in readers:
            own_problems: list[str] = []
            result = reader(value, place, own_problems)
            if not own_problems:
                return result
        if len(readers) == 1:
            problems += own_problems
            return INVALID
        wanted = [reader.plain.wanted if isinstance(reader, _Scalar) else "of another type" for reader in readers]
        return _refused(value, place, problems, wanted=" or ".join(wanted))

    return read


# ---- what has parts --------------------------------------------------------------------------------------------------


def _sequence(item: Any, *, make: Callable[[Any], Any]) -> Read:
    reader = _reader(item)

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) is not list:
            return _refused(value, place, problems, wanted="a list")
        if isinstance(reader, _Scalar) and reader.accepts_all(value):
            return make(value)
        return make([reader(part, f"{place}[{index}]", problems) for index, part in enumerate(value)])

    return read


def _fixed(parts: tuple[Any, ...]) -> Read:
    readers = [_reader(part) for part in parts]

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) is not list:
            return _refused(value, place, problems, wanted="a list")
        if len(value) != len(readers):
            problems.append(f"{place} is {shown(value)}; it must have {len(readers)} entries")
        items = zip(readers, value, strict=False)
        return tuple(reader(part, f"{place}[{index}]", problems) for index, (reader, part) in enumerate(items))

    return read


def _mapping(parts: tuple[Any, ...]) -> Read:
    name_reader, item_reader = map(_reader, parts)

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) is not dict:
            return _refused(value, place, problems, wanted="an object")
        return {
            name_reader(name, f"a name in {place}", problems): item_reader(item, f"{place}.{name}", problems)
            for name, item in value.items()
        }

    return read


def _dataclass(cls: Any) -> Read:
    @functools.cache
    def readers() -> dict[str, Read]:  # when first needed: a dataclass may hold others of its kind
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: _reader(hints[field.name]) for field in dataclasses.fields(cls) if field.init}

    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def read(value: Any, place: str, problems: list[str], /) -> Any:
        if type(value) is not dict:
            return _refused(value, place, problems, wanted="an object of named fields")
        before, fields = len(problems), readers()
        problems += [
            f"{place}.{name} is not a field{did_you_mean(name, fields)}" for name in value if name not in fields
        ]
        problems += [f"{place}.{name} is missing" for name in required if name not in value]
        values = {
            name: fields[name](item, f"{place}.{name}", problems) for name, item in value.items() if name in fields
        }
        if len(problems) > before:
            return INVALID
        try:
            return cls(**values)
        except ValueError as invalid:
            problems += [f"{place}: {line}" for line in str(invalid).splitlines()]
            return INVALID

    return read
