"""Lay out the pages of the docs site in build/docs, from the Markdown that the repository has anyway.

    python scripts/stage_docs.py && zensical build --strict

docs/ is taken as it is; README.md becomes the first page, SECURITY.md and CHANGELOG.md stand beside the others.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGED = ROOT / "build/docs"
TOP = {"README.md": "index.md", "SECURITY.md": "SECURITY.md", "CHANGELOG.md": "CHANGELOG.md", "LICENSE": "LICENSE.md"}
"""Files beside docs/, and what they are called on the site."""
_LINK = re.compile(r"\]\(([^()\s#]+)")


def stage() -> None:
    """Write all pages anew."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGED)
    for page in STAGED.rglob("*.md"):
        page.write_text(_moved(page.read_text(encoding="utf-8"), up="../"), encoding="utf-8")
    for name, page in TOP.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text if name.endswith(".md") else f"# {name.capitalize()}\n\n```\n{text}```\n"
        (STAGED / page).write_text(_moved(text, up=""), encoding="utf-8")


def _moved(text: str, *, up: str) -> str:
    """Return a page with its links to where the site has what they lead to."""

    def moved(link: re.Match[str]) -> str:
        target = link[1].removeprefix("docs/") if not up else link[1]
        name = target.removeprefix(up)
        return f"]({TOP[name] if target.startswith(up) and name in TOP else target}"

    return _LINK.sub(moved, text)


if __name__ == "__main__":
    stage()
