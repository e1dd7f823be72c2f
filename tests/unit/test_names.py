"""A name has one meaning: no two modules define a class of the same name."""

import ast
from collections import defaultdict
from pathlib import Path

import chinchilla_ds

PACKAGE = Path(chinchilla_ds.__file__).parent


def test_no_two_modules_define_a_class_of_the_same_name() -> None:
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert len(places) > 200
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
