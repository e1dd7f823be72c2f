"""Links in the Markdown lead somewhere, and the site has every page."""

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from _pages([value] if isinstance(value, str) else value)


def test_no_link_is_broken() -> None:
    done = subprocess.run([sys.executable, "scripts/check_links.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_broken_link_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One thing: `a` & b\n\n# Twice\n\n# Twice\n\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md) [x](b.md#one-thing-a--b) [x](b.md#twice-1) [x](#here) [x](https://nowhere.invalid)\n# Here\n"
        "`[code](no.md)`\n```\n[code](no.md)\n```\n"
    )
    broken_links = _script("check_links").broken_links
    assert list(broken_links([page])) == []
    page.write_text("[x](c.md) [`x` [y]](b.md#no-heading) [x](b.md#twice-2) [x](#here)\n")
    assert [line.removeprefix(f"{page}: ") for line in broken_links([page])] == [
        "c.md leads to no file",
        "b.md#no-heading leads to no heading of b.md",
        "b.md#twice-2 leads to no heading of b.md",
        "#here leads to no heading of a.md",
    ]


def test_the_site_has_every_page_in_its_order() -> None:
    nav = list(_pages(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(nav) == pages | set(_script("stage_docs").TOP.values())
    assert len(nav) == len(set(nav))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for name in ("docs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "zensical.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    stage_docs = _script("stage_docs")
    stage_docs.ROOT, stage_docs.STAGED = tmp_path, tmp_path / "build/docs"
    stage_docs.stage()
    zensical = Path(sys.executable).with_name("zensical")
    build = [zensical, "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compute budget" in (tmp_path / "build/site/index.html").read_text(encoding="utf-8")
    page = tmp_path / "build/docs/budget.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[broken](nothing.md)\n")
    done = subprocess.run([*build, "--clean"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
