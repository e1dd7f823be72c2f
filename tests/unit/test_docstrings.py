"""Docstrings: `Args:` on every public function of three or more arguments, `Source:` wherever a paper is cited."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "chinchilla_ds"
FEWEST_ARGUMENTS = 3
"""Functions with fewer explain their arguments in the summary."""
ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+):", re.MULTILINE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.AST) -> Iterator[Function]:
    """Yield the functions and methods that other modules may call, constructors included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, Function) and (node.name == "__init__" or not node.name.startswith("_")):
            yield node


def arguments_of(function: Function) -> list[str]:
    """Return the names of the arguments, without self and cls."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def problems_of(function: Function) -> Iterator[str]:
    """Yield what the docstring of a function lacks."""
    docstring, names = ast.get_docstring(function, clean=False) or "", arguments_of(function)
    if len(names) >= FEWEST_ARGUMENTS:
        _, marker, tail = docstring.partition("Args:")
        if not marker:
            yield f"{function.name} has {len(names)} arguments and no Args:"
        elif missing := set(names) - set(ARGUMENT.findall(tail)):
            yield f"{function.name} does not describe {', '.join(sorted(missing))}"
    if "arXiv:" in docstring and "Source:" not in docstring:
        yield f"{function.name} cites a paper without Source:"


def problems(source: str) -> list[str]:
    """Return the problems of a module's public functions."""
    return [problem for function in public_functions(ast.parse(source)) for problem in problems_of(function)]


def test_every_public_function_describes_its_arguments_and_its_sources() -> None:
    lacking = [
        f"{path.relative_to(PACKAGE.parent)}: {problem}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for problem in problems(path.read_text("utf-8"))
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b, c):\n    '''Add.'''", ["f has 3 arguments and no Args:"]),
        ("def f(a, b, c):\n    '''Add.\n\n    Args:\n        a: x\n        c: z\n    '''", ["f does not describe b"]),
        ("class A:\n    def g(self, a, *, b, c):\n        '''Add.'''", ["g has 3 arguments and no Args:"]),
        ("def f():\n    '''Return 6 N D (arXiv:2001.08361).'''", ["f cites a paper without Source:"]),
        ("def f(a, b):\n    '''Add.'''", []),
        ("def _f(a, b, c):\n    '''Add.'''", []),
        ("class _A:\n    def g(self, a, b, c):\n        '''Add.'''", []),
    ],
)
def test_what_is_missing_is_found(source: str, expected: list[str]) -> None:
    assert problems(source) == expected
