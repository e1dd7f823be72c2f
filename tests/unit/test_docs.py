"""The pages name what there is: rooms, layers and every path in code font, held against `git ls-files`."""

import fnmatch
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {
    "filter.py",  # SlimPajama's
    "modelzoo/transformers/data_processing/slimpajama/preprocessing/filter.py",
    "to_hash.py",
    "utils.py",  # what we have none of
}
"""Files that pages speak of and that are other people's."""
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PATH = re.compile(r"[\w*-][\w./*-]*")


@pytest.fixture(scope="module")
def tracked() -> frozenset[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository, so that nothing says which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(name for name in listed.split("\0") if name and (ROOT / name).exists())


def folders_of(tracked: frozenset[str]) -> frozenset[str]:
    return frozenset(str(folder) for name in tracked for folder in PurePosixPath(name).parents) - {"."}


def rooms_of(tracked: frozenset[str]) -> frozenset[str]:
    """Return the folders of the package that hold modules, as paths below it."""
    modules = (
        PurePosixPath(name).relative_to("chinchilla_ds") for name in tracked if name.startswith("chinchilla_ds/")
    )
    return frozenset(str(module.parent) for module in modules if module.suffix == ".py") - {"."}


# ---- the README's tree -----------------------------------------------------------------------------------------------


def tree_of(text: str) -> Iterator[str]:
    """Yield every path of a tree that is written with two more spaces per level, and names before a description."""
    block = text.split("## Layout of the tree", 1)[1].split("```", 2)[1]
    parents: list[str] = []
    for line in block.strip("\n").splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        del parents[level:]
        yield from ("".join(parents) + name for name in names)
        parents.append(names[0])


def test_a_tree_is_read_level_by_level() -> None:
    text = "## Layout of the tree\n```\na/\n  b.py c.py  two\n  d/    it\n    e/  more\nf/  last\n```\n"
    assert list(tree_of(text)) == ["a/", "a/b.py", "a/c.py", "a/d/", "a/d/e/", "f/"]


def test_the_readme_has_every_room_and_no_other(tracked: frozenset[str]) -> None:
    named = list(tree_of((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(set(named)) == len(named)
    top = {name for name in tracked if re.fullmatch(r"chinchilla_ds/(?!__)\w+\.py", name)}
    top |= {f"{name.split('/')[0]}/" for name in tracked if "/" in name and not name.startswith(".")}
    there = top | {f"chinchilla_ds/{room}/" for room in rooms_of(tracked)}
    assert set(named) - there == set(), "the tree names what is not there"
    assert there - set(named) == set(), "the tree lacks what is there"


# ---- docs/contributing.md --------------------------------------------------------------------------------------------


def contributing() -> str:
    return (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


def test_contributing_has_every_room_and_no_other(tracked: frozenset[str]) -> None:
    table = contributing().split("## Rooms", 1)[1].split("## ", 1)[0]
    named = re.findall(r"^\| `(\w+)/` \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(room for room in rooms_of(tracked) if "/" not in room)


def test_contributing_has_the_layers_that_are_kept() -> None:
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in kept if contract["id"] == "layers")
    shown = contributing().split("## Layers", 1)[1].split("```", 2)[1].strip().splitlines()
    assert shown == layers


def test_contributing_has_every_hook_in_order() -> None:
    from chinchilla_ds.training.callback import Callback

    hooks = [name for name in vars(Callback) if name.startswith("on_")]
    assert re.findall(r"^\| `(on_\w+)` \|", contributing(), flags=re.MULTILINE) == hooks


# ---- every page ------------------------------------------------------------------------------------------------------


def named_paths(text: str, *, rooms: frozenset[str]) -> Iterator[str]:
    """Yield what stands in code font, outside of blocks, and is a path of this repository.

    A file of Python, Markdown, TOML or shell is one; so is what begins with the name of a room or a folder here. A
    run's `runs/` and `data/` have their names from rooms too: of them only modules are meant.
    """
    for span in _SPAN.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        path = span.removeprefix("./")
        if not _PATH.fullmatch(path) or path in NOT_OURS:
            continue
        first, _, rest = path.partition("/")
        is_output = first in ("runs", "data") and not path.endswith((".py", "/"))
        if path.endswith((".py", ".md", ".toml", ".sh")) or (rest and first in rooms and not is_output):
            yield path


def is_there(path: str, *, places: frozenset[str]) -> bool:
    """Return whether a path is one of the places, from the root or the package; or the end of exactly one of them."""
    name = path.rstrip("/")
    if fnmatch.filter(places, name) or fnmatch.filter(places, f"chinchilla_ds/{name}"):
        return True
    return sum(place.endswith(f"/{name}") for place in places) == 1


def test_what_counts_as_a_path() -> None:
    text = "`data/reading/kinds.py` `runs/mlflow.db` `budget/laws/` `x.py` `plan.json` `a b.py` `to_hash.py`"
    found = list(named_paths(text, rooms=frozenset({"data", "budget", "runs"})))
    assert found == ["data/reading/kinds.py", "budget/laws/", "x.py"]
    places = frozenset({"chinchilla_ds/budget/laws/forms.py", "chinchilla_ds/budget/laws", "a/x.py", "b/x.py"})
    assert is_there("forms.py", places=places)
    assert is_there("budget/laws/", places=places)
    assert is_there("budget/laws/*.py", places=places)
    assert not is_there("x.py", places=places), "one of two"
    assert not is_there("budget/law_forms.py", places=places)


def test_every_path_that_a_page_names_exists(tracked: frozenset[str]) -> None:
    places = tracked | folders_of(tracked)
    rooms = frozenset(path.split("/")[0] for path in folders_of(tracked) | rooms_of(tracked))
    pages = [name for name in tracked if name.endswith(".md")]
    missing = [
        f"{page}: {path}"
        for page in sorted(pages)
        for path in named_paths((ROOT / page).read_text(encoding="utf-8"), rooms=rooms)
        if not is_there(path, places=places)
    ]
    assert len(pages) > 20
    assert not missing, missing
