"""What the pages of docs/ say to write: their code blocks, so that tests do just that."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def code_blocks(page: str, language: str = "python") -> list[str]:
    """Return the blocks of a page that are marked as of a language; "" for those that are marked as none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
