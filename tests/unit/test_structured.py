import ast
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest

import chinchilla_ds
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.ranges import Ge, Gt
from chinchilla_ds.structured import MAX_YAML_BYTES, build, parse_json, parse_yaml, read_json, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("NaN", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("[1,\n1e400]", "1e400 is not a finite number, line 2"),
        ("9" * 5000, "an integer has 5000 digits"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("[" * 150 + "]" * 150, "nested more than 100 deep"),
        ('{"a":', "Expecting value at line 1 column 6"),
        (b"\xff{}", "not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_json_outside_the_limits_is_one_line(text: str | bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=r"^file f is not") as caught:
        parse_json(text, where="file f", error=CheckpointError)
    (problem,) = caught.value.problems
    assert said in problem
    assert "\n" not in problem


def test_json_within_the_limits_is_what_was_written() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, "x", null, true, -0.0, 1e24]}', where="f") == {
        "a": [1, 2.5, "x", None, True, 0.0, 1e24]
    }
    assert parse_json("[" * 100 + "]" * 100, where="f")
    assert parse_json(str(10**300), where="f") == 10**300


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    assert parse_json(r'{"a\ud800": ["\ude00", "\ud83d\ude00"]}', where="f") == {"a�": ["�", "😀"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "key 'a' occurs twice in one mapping at line 2"),
        ("no: 1", "the key 'no' is not text; quote it"),
        ("? [1]\n: 2", "the key a list or mapping is not text"),
        ("a: .nan", ".nan is not a finite number"),
        ("a: 1e999", "1e999 is not a finite number"),
        ("!!python/object/apply:os.system ['x']", "is not read"),
        ("a: !!float x", "is not read at line 1 column 4"),
        ("a: &a [*a]", "nested more than 100 deep"),
        ("[" * 3000, "nested more than 100 deep"),
        ("a: " + "9" * 5000, "an integer has 5000 digits"),
        ("a: 0x_", "invalid literal"),
        ("a: [", "at line 1 column"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x00", "special characters"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12)), "more than 100,000"),
    ],
)
def test_yaml_outside_the_limits_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe r is not YAML") as caught:
        parse_yaml(text, where="recipe r")
    (problem,) = caught.value.problems
    assert said in problem
    assert "\n" not in problem


def test_yaml_within_the_limits_is_what_was_written() -> None:
    text = "a: &x [1, 1e-3, .5, yes, ~, text, 2026-01-01]\nb: *x\nc: {<<: {d: 1}, e: 0x10}"
    items = [1, 0.001, 0.5, True, None, "text", "2026-01-01"]
    assert parse_yaml(text, where="r") == {"a": items, "b": items, "c": {"d": 1, "e": 16}}
    assert parse_yaml("", where="r") is None


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "large.yaml").write_text("#" * (MAX_YAML_BYTES + 1))
    (tmp_path / "plan.json").write_text("{}")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a regular file"):
            read_json(path, what="plan")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_json(tmp_path, what="plan")
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        read_yaml(tmp_path / "large.yaml", what="recipe")
    with pytest.raises(ConfigError, match=r"No such file or directory; did you mean 'plan\.json'"):
        read_json(tmp_path / "plam.json", what="plan")
    with pytest.raises(ConfigError, match="null"):
        read_json(Path("a\0b"), what="plan")


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class _Part:
    size: Annotated[int, Ge(1)]
    rate: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ValueError("size 7 is taken\nand will stay so")


@dataclass(frozen=True, kw_only=True)
class _Whole:
    part: _Part
    place: Path
    colour: _Colour = _Colour.RED
    bounds: tuple[float, float] | None = None
    names: tuple[str, ...] = ()


def test_a_dataclass_is_built_with_its_types() -> None:
    data = {"part": {"size": 2, "rate": 3}, "place": "x/y", "colour": "blue", "bounds": [1, 2.5], "names": ["a"]}
    built = build(_Whole, data, where="w")
    assert built == _Whole(
        part=_Part(size=2, rate=3.0), place=Path("x/y"), colour=_Colour.BLUE, bounds=(1.0, 2.5), names=("a",)
    )
    assert isinstance(built.part.rate, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"part": {"size": 0, "rate": -1}},
            ["w.part.rate is -1; it must be above 0", "w.part.size is 0; it must be at least 1"],
        ),
        ({"part": {"size": 7}}, ["w.part: and will stay so", "w.part: size 7 is taken"]),
        ({"part": {"sise": 1}}, ["w.part.sise is not a field; did you mean 'size'?", "w.part.size is missing"]),
        ({"part": {"size": 1.0}}, ["w.part.size is 1.0; it must be a whole number"]),
        ({"part": {"size": True}}, ["w.part.size is True; it must be a whole number"]),
        ({"part": {"size": "1"}}, ["w.part.size is '1'; it must be a whole number"]),
        ({"part": [1]}, ["w.part is [1]; it must be an object of named fields"]),
        ({"part": None}, ["w.part is None; it must be an object of named fields"]),
        ({"place": "a\0b", "names": ["\\u0000", "\0"]}, ["w.names[1] holds a NUL, which is not allowed",
            "w.place holds a NUL, which is not allowed"]),
        ({"place": 3}, ["w.place is 3; it must be text"]),
        ({"colour": "green"}, ["w.colour is 'green'; it must be one of 'red' or 'blue'"]),
        ({"bounds": [1, 2, 3]}, ["w.bounds is [1, 2, 3]; it must have 2 entries"]),
        ({"bounds": {}}, ["w.bounds is {}; it must be a list"]),
        ({"names": [1], "more": 2}, ["w.more is not a field", "w.names[0] is 1; it must be text"]),
    ],
)  # fmt: skip
def test_every_problem_of_a_dataclass_is_told(change: dict[str, Any], said: list[str]) -> None:
    data = {"part": {"size": 1}, "place": "x"} | change
    with pytest.raises(CheckpointError) as caught:
        build(_Whole, data, where="w", error=CheckpointError)
    assert sorted(caught.value.problems) == sorted(said)


def test_a_dataclass_is_not_built_of_anything_else() -> None:
    for data, kind in ((3, "a number"), (None, "null"), ([], "a list"), ("x", "text")):
        with pytest.raises(ConfigError, match=f"w must be an object of named fields, not {kind}"):
            build(_Whole, data, where="w")


# ---- nothing else reads ----------------------------------------------------------------------------------------------

_READERS = {
    "json",
    "yaml",
    "hjson",
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "tomllib",
    "plistlib",
    "torch",
}
_PACKAGE = Path(chinchilla_ds.__file__).parent


def _reads(source: str) -> list[str]:
    """Return calls and imports that turn text into objects without the limits of `structured`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in _READERS:
            name = f"{node.value.id}.{node.attr}"
            if "load" in node.attr.lower() or name in (
                "json.JSONDecoder",
                "yaml.compose",
                "yaml.parse",
                "pickle.Unpickler",
            ):
                found.append(f"line {node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom) and node.module in _READERS - {"torch"}:
            names = [alias.name for alias in node.names]
            found += [f"line {node.lineno}: from {node.module} import {name}" for name in names if "dump" not in name]
    return found


def test_the_search_sees_what_reads() -> None:
    assert (
        len(_reads("import json, yaml\njson.loads(x)\nyaml.safe_load(y)\nfrom pickle import loads\ntorch.load(z)")) == 4
    )
    assert _reads("import json\njson.dumps(x)\nmodel.load_state_dict(y)\ntorch.ones(3)") == []


def test_nothing_else_reads_json_yaml_or_pickles() -> None:
    allowed = {
        "structured.py",
        "testing/run_on_ranks.py",  # what its own forks write
        "evaluation/tasks.py",  # composes lm-eval's files, whose tags are lm-eval's to read, and constructs nothing
    }
    found = {
        name: reads
        for path in sorted(_PACKAGE.rglob("*.py"))
        if (name := path.relative_to(_PACKAGE).as_posix()) not in allowed
        and (reads := _reads(path.read_text(encoding="utf-8")))
    }
    assert not found
