"""Gopher's and C4's quality rules for English, as datatrove implements them; an extra, not installed by default.

FineWeb was filtered with datatrove (Penedo et al. 2024, arXiv:2406.17557). Its thresholds are used unchanged.
"""

import importlib
from collections.abc import Callable
from typing import Any

from chinchilla_ds.errors import ConfigError


def gopher() -> Callable[[str], bool]:
    """Return a function that checks whether a text passes Gopher's quality and repetition rules.

    Source: Rae et al. 2021 (arXiv:2112.11446), table A1 and section A.1.1.

    Raises:
        ConfigError: datatrove is not installed.
    """
    filters = _import("datatrove.pipeline.filters", rule="gopher")
    steps = (filters.GopherRepetitionFilter(), filters.GopherQualityFilter())
    return lambda text: all(step.filter(_document(text)) is True for step in steps)


def c4() -> Callable[[str], tuple[str | None, int]]:
    """Return a function that drops C4's lines: it returns the text, or None, and the number of dropped lines.

    Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.2. The list of bad words is not applied.

    Raises:
        ConfigError: datatrove is not installed.
    """
    step = _import("datatrove.pipeline.filters", rule="c4").C4QualityFilter()

    def drop_lines(text: str) -> tuple[str | None, int]:
        document = _document(text)
        if step.filter(document) is not True:
            return None, 0
        cleaned: str = document.text
        # a line may also lose a citation mark or the space around it
        return cleaned, max(1, len(text.splitlines()) - len(cleaned.splitlines())) if cleaned != text else 0

    return drop_lines


def _document(text: str) -> Any:
    return importlib.import_module("datatrove.data").Document(text=text, id="")


def _import(name: str, *, rule: str) -> Any:
    try:
        for needed in ("spacy", "regex"):  # datatrove imports them only when the first document is filtered
            importlib.import_module(needed)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cleaning rule {rule!r} needs {error.name}, which is not installed; `pip install chinchilla-ds[quality]`, "
            "or leave the rule out"
        ) from error
