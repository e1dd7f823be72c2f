"""Published tables that are not ours to ship: tests find them through CHINCHILLA_DATA, and skip without."""

import os
from pathlib import Path

import pytest

VARIABLE = "CHINCHILLA_DATA"
"""Names a folder with data/scaling/*.csv and data/corpus/*.txt; docs/contributing.md says what they are."""


def shared_data(name: str, /) -> Path:
    """Return the path of a file below the folder, or skip the test that asks for it."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} is not set, and this test needs {name} below it")
    path = Path(root) / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path
