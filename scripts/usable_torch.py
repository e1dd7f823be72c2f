"""Print the version of the torch that this Python can already import; exit 1 when there is none that we can use."""

import importlib.metadata
import re
import sys

OLDEST, NEWEST = (2, 11), (2, 13)
"""The range in pyproject.toml; a torch outside it is left alone and ours is installed beside it."""


def main() -> int:
    """Look for torch, check its version, then import it: a broken install is not one to keep."""
    try:
        version = importlib.metadata.version("torch")
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if not OLDEST <= numbers <= NEWEST:
            return 1
        import torch  # noqa: F401  (the import is the check)
    except Exception:  # whatever is wrong with it, it is not usable
        return 1
    print(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
