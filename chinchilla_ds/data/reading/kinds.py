"""How a file is read: by its name, or by its first bytes if the name has no suffix."""

import re
from enum import StrEnum
from pathlib import Path

from chinchilla_ds.data.reading.streams import PACKED_SUFFIXES, ArchiveError, open_bytes


class FileKind(StrEnum):
    """How a file is read."""

    TEXT = "text"
    WHOLE_TEXT = "whole text"
    """One document of any size; a file that is not UTF-8 is skipped and counted (standard library only)."""
    JSONL = "JSONL"
    JSON = "JSON"
    """One array, one object, or lines."""
    CSV = "CSV"
    PARQUET = "Parquet"
    ARROW = "Arrow"
    """A folder written by `datasets.Dataset.save_to_disk`."""
    HUB = "Hugging Face"
    """A data set by name, streamed."""


_BY_SUFFIX = {
    ".jsonl": FileKind.JSONL,
    ".ndjson": FileKind.JSONL,
    ".json": FileKind.JSON,
    ".csv": FileKind.CSV,
    ".parquet": FileKind.PARQUET,
} | dict.fromkeys(
    (
        *(".txt", ".text", ".md", ".rst", ".tex", ".org", ".html", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp"),
        *(".cu", ".cuh", ".rs", ".go", ".java", ".kt", ".scala", ".js", ".ts", ".rb", ".php", ".pl", ".lua", ".jl"),
        *(".r", ".hs", ".ml", ".swift", ".sh", ".sql"),
    ),
    FileKind.TEXT,
)
SUFFIXES = tuple(sorted(_BY_SUFFIX))
"""Suffixes of file names, which a suffix of packed files may follow."""

_NUMBER = re.compile(r"[.-]\d+(-of-\d+)?$")
"""The end of the name of one file of several: c4-train.00000-of-01024, part-00000, shard.007."""
_JSON_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*\{)')
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_NOT_IN_TEXT = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f]")


def suffix_of(path: Path, /) -> str:
    """Return the suffix that names a file's content, in lower case, without numbers and without that of a packed file.

    Empty if there is none, and `.tar` for `x.tar.gz`.
    """
    name = path.name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return Path(_NUMBER.sub("", name)).suffix


def kind_of(path: Path, /) -> FileKind | None:
    """Return how a regular file is read, or None for an unknown kind.

    Raises:
        OSError: its name has no suffix, and it cannot be opened.
    """
    suffix = suffix_of(path)
    return _BY_SUFFIX.get(suffix) if suffix else _kind_of_content(path)


def _kind_of_content(path: Path) -> FileKind | None:
    try:
        with open_bytes(path) as stream:
            head = stream.peek()
    except ArchiveError:
        return FileKind.TEXT  # its reader reports the problem
    if head.startswith(b"PAR1"):
        return FileKind.PARQUET
    if _JSON_HEAD.match(head):
        return FileKind.JSON
    return FileKind.TEXT if head.startswith(_UTF16_BOMS) or not _NOT_IN_TEXT.search(head) else None
