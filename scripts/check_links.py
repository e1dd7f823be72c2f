"""Check that every relative link in the Markdown files leads to a file, and to a heading where it names one.

Used by `make lint`. Links to other sites are not followed.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def broken_links(files: list[Path], /) -> Iterator[str]:
    """Yield a line per link that leads nowhere."""
    for file in files:
        text = _without_code(file.read_text(encoding="utf-8"))
        for target in _LINK.findall(text):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            there = (file.parent / name) if name else file
            if not there.exists():
                yield f"{file}: {target} leads to no file"
            elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8")):
                yield f"{file}: {target} leads to no heading of {there.name}"


def _without_code(text: str) -> str:
    return _CODE.sub("", _FENCE.sub("", text))


def anchors(text: str, /) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them; a heading that is there twice gets a number."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 1
        while (numbered := anchor if number == 1 else f"{anchor}-{number - 1}") in found:
            number += 1
        found.add(numbered)
    return found


def main() -> int:
    """Check the files that git knows; return 1 if a link is broken."""
    listed = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True).stdout
    problems = list(broken_links([Path(name) for name in listed.splitlines()]))
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
