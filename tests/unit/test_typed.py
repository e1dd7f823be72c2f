"""`typed.build` against pydantic's strict reading of JSON, value for value."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.ranges import Ge, Gt, Le, Len, Lt, MinLen, MultipleOf
from chinchilla_ds.typed import build


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class _Part:
    size: Annotated[int, annotated_types.Ge(1), annotated_types.Le(8)]
    even: Annotated[int, annotated_types.MultipleOf(2)] = 2

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ValueError("7 is taken")


@dataclass(frozen=True, kw_only=True)
class _Whole:
    part: _Part
    share: Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)]
    text: Annotated[str, annotated_types.Len(1, 3)]
    is_on: bool
    number: int | float
    place: Path | None = None
    colour: _Colour = _Colour.RED
    mode: Literal["strict", "skip"] = "skip"
    parts: tuple[_Part, ...] = ()
    column: tuple[Annotated[int, annotated_types.Ge(0), annotated_types.Lt(100)], ...] = ()
    pair: tuple[int, float] | None = None
    colours: frozenset[_Colour] = frozenset()
    table: Mapping[str, Annotated[float, annotated_types.Ge(0)]] = dataclasses.field(default_factory=dict)
    scalar: str | int | float | bool | None = None
    anything: dict[str, Any] = dataclasses.field(default_factory=dict)


_SOUND = {
    "part": {"size": 2}, "share": 0.5, "text": "ab", "is_on": True, "number": 3, "place": "a/b", "colour": "blue",
    "mode": "strict", "parts": [{"size": 1, "even": 4}, {"size": 8}], "column": [0, 99], "pair": [1, 2],
    "colours": ["red", "red"], "table": {"x": 1}, "scalar": "x", "anything": {"y": [1]},
}  # fmt: skip
_PYDANTIC = pydantic.TypeAdapter(_Whole)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 101) | st.floats(-2, 2) | st.sampled_from(["", "red", "skip", "abcd"])
    | st.sampled_from([{"size": 1}, {"size": 7}, {"size": 9}, {"size": 2, "even": 3}, {"more": 1}, 1.0, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["size", "x"]), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


def _by_pydantic(data: Any) -> Any:
    try:
        return _PYDANTIC.validate_json(json.dumps(data), strict=True, extra="forbid")
    except pydantic.ValidationError:
        return None


def _by_build(data: Any) -> Any:
    try:
        return build(_Whole, data, where="whole")
    except ConfigError:
        return None


@settings(max_examples=600, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*_SOUND, "unknown"]), _VALUES, max_size=2), st.sampled_from(["", *_SOUND]))
def test_as_pydantic_reads_strictly(changes: dict[str, Any], left_out: str) -> None:
    data = {name: value for name, value in (_SOUND | changes).items() if name != left_out}
    expected, built = _by_pydantic(data), _by_build(data)
    assert built == expected
    if built is not None:
        types = [[type(getattr(one, field.name)) for field in dataclasses.fields(one)] for one in (built, expected)]
        assert types[0] == types[1]


def test_both_outcomes_are_reached() -> None:
    assert _by_build(_SOUND) == _by_pydantic(_SOUND) is not None
    assert _by_build(_SOUND | {"share": 1}) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (Gt(0), annotated_types.Gt(0), (0, 1, -1)),
        (Ge(0), annotated_types.Ge(0), (0, 1, -1)),
        (Lt(2), annotated_types.Lt(2), (1, 2, 3)),
        (Le(2), annotated_types.Le(2), (1, 2, 3)),
        (MultipleOf(3), annotated_types.MultipleOf(3), (3, 4, 0)),
        (Len(1, 2), annotated_types.Len(1, 2), ("", "a", "abc")),
        (Len(2), annotated_types.Len(2), ("a", "ab")),
        (MinLen(2), annotated_types.MinLen(2), ("a", "ab")),
    ],
)
def test_our_markers_mean_what_theirs_mean(ours: Any, theirs: Any, values: tuple[Any, ...]) -> None:
    verdicts = []
    for marker in (ours, theirs):
        kind = dataclasses.make_dataclass("kind", [("a", Annotated[type(values[0]), marker])])
        verdicts.append([_accepts(kind, value) for value in values])
    assert verdicts[0] == verdicts[1]
    assert True in verdicts[0]
    assert False in verdicts[0]


def _accepts(kind: Any, value: Any) -> bool:
    try:
        build(kind, {"a": value}, where="w")
    except ConfigError:
        return False
    return True


def test_a_marker_that_is_none_is_a_bug_of_ours() -> None:
    kind = dataclasses.make_dataclass("kind", [("a", Annotated[int, "positive"])])
    with pytest.raises(TypeError, match="'positive' is not a range of a field"):
        build(kind, {"a": 1}, where="w")


def test_a_column_of_a_million_numbers_takes_no_time() -> None:
    """The index of a large checkpoint has such columns; 0.03 s here, and item by item 1 s."""
    kind = dataclasses.make_dataclass("kind", [("a", tuple[Annotated[int, Ge(0), Le(10**9)], ...])])
    column = list(range(1_000_000))
    started_s = time.process_time()
    assert len(build(kind, {"a": column}, where="w").a) == 1_000_000
    assert time.process_time() - started_s < 0.5
    with pytest.raises(ConfigError, match=r"w.a\[2\] is -1; it must be at least 0"):
        build(kind, {"a": [0, 1, -1]}, where="w")


def test_a_number_beyond_a_float_is_refused_by_nobody_but_the_reader() -> None:
    kind = dataclasses.make_dataclass("kind", [("a", float)])
    assert math.isclose(build(kind, {"a": 10**300}, where="w").a, 1e300)


def test_it_needs_nothing_but_python() -> None:
    """-S leaves site-packages out."""
    code = "import chinchilla_ds.typed, sys; print('pydantic' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
