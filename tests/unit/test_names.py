"""A class name has one meaning, and locals are named for what they hold."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import chinchilla_ds

PACKAGE = Path(chinchilla_ds.__file__).parent

VAGUE = frozenset({"found", "kept", "one", "told"})
"""Local names that would suit any value."""


def vague_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of the parameters and variables of Python source, fields apart, that have a vague name."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {id(line.target) for node in classes for line in node.body if isinstance(line, ast.AnnAssign)}
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.ExceptHandler(name=name)
                | ast.MatchAs(name=name)
                | ast.MatchStar(name=name)
                | ast.MatchMapping(rest=name)
                | ast.alias(asname=name)
            ):
                if name in VAGUE:
                    yield getattr(node, "lineno", 0), name


def test_no_two_modules_define_a_class_of_the_same_name() -> None:
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert len(places) > 200
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_locals_are_named_for_what_they_hold() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(sources) > 300
    assert [
        f"{module}:{line}: {name}" for module in sorted(sources) for line, name in vague_names(sources[module])
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "found: int = 1",
        "if found := 1: pass",
        "a, (b, found) = c",
        "[found for found in a]",
        "for found in a: pass",
        "with a as found: pass",
        "def f(found): pass",
        "def f(*, found): pass",
        "def f(*found): pass",
        "lambda found: 0",
        "import a as found",
        "try: pass\nexcept E as found: pass",
        "match a:\n    case [*found]: pass",
        "match a:\n    case {**found}: pass",
        "match a:\n    case found: pass",
    ],
)
def test_a_vague_name_is_found_wherever_it_is_bound(source: str) -> None:
    assert [name for _, name in vague_names(source)] == ["found"]


def test_attributes_keywords_and_longer_names_may_contain_the_words() -> None:
    assert list(vague_names("self.found = f(one=1)\nnot_found = num_kept = 0")) == []
