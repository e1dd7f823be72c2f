"""Where text comes from: files and folders of text, JSONL and Parquet, or the running Python's own standard library."""

import os
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from chinchilla_ds.config import DataConfig
from chinchilla_ds.errors import DataError, did_you_mean

MAX_PROBLEMS = 20
"""Problems listed by one error; the rest is counted."""

_TEXT_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("txt", "text", "md", "rst", "tex", "org", "html"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "cuh", "rs", "go", "java", "kt", "scala", "js", "ts", "rb"),
        *("php", "pl", "lua", "jl", "r", "hs", "ml", "swift", "sh", "sql"),
    )
)
_SUFFIX_PAIRS = frozenset({".jsonl.gz"})


class Kind(StrEnum):
    """How a file is read."""

    TEXT = "text"
    WHOLE_TEXT = "whole text"
    """One document whatever its size; a file that is not UTF-8 is skipped and counted (standard library only)."""
    JSONL = "JSONL"
    PARQUET = "Parquet"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the corpus."""

    path: Path
    kind: Kind
    num_bytes: int
    modified_ns: int
    """Time of the last change, nanoseconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The files of a corpus, in the order they are read."""

    files: tuple[SourceFile, ...]
    text_field: str
    description: str
    """One line for people."""

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk, in bytes."""
        return sum(file.num_bytes for file in self.files)


@dataclass(kw_only=True)
class ReadReport:
    """What happened while documents were read; filled by `readers.read_documents`."""

    problems: list[str] = field(default_factory=list)
    skipped_files: int = 0
    """Standard-library files that are not UTF-8."""
    read_bytes: int = 0
    """How far reading is, out of `Corpus.num_bytes`."""

    def raise_problems(self) -> None:
        """Raise one DataError that lists every problem, if there is any."""
        if self.problems:
            more = len(self.problems) - MAX_PROBLEMS
            tail = [f"... and {more} more problems of this kind"] if more > 0 else []
            raise DataError(self.problems[:MAX_PROBLEMS] + tail)


def find_corpus(data: DataConfig) -> Corpus:
    """Return the files that `data.paths` names, or the standard library's where it names none.

    Folders are searched recursively in sorted order; hidden entries and files of unknown types in them are left out.

    Raises:
        DataError: listing every path that is missing, unreadable, empty, or of an unknown type.
    """
    if not data.paths:
        return _standard_library(text_field=data.text_field)
    report, left_out = ReadReport(), 0
    files: list[SourceFile] = []
    for path in data.paths:
        try:
            found, others = _find_files(path)
        except DataError as error:
            report.problems.extend(error.problems)
        except OSError as error:
            report.problems.append(f"cannot read {path}: {error.strerror}")
        else:
            files.extend(found)
            left_out += others
    report.raise_problems()
    unique = {file.path.resolve(): file for file in files}
    shown = ", ".join(str(path) for path in data.paths[:3]) + (", ..." if data.paths[3:] else "")
    note = f", {left_out} files of other types left out" if left_out else ""
    description = f"{shown} ({len(unique)} file{'s' if len(unique) > 1 else ''}{note})"
    return Corpus(files=tuple(unique.values()), text_field=data.text_field, description=description)


def _standard_library(*, text_field: str) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    files: list[SourceFile] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in {"site-packages", "dist-packages", "__pycache__"})
        paths = (Path(folder, name) for name in sorted(names) if name.endswith(".py"))
        files.extend(_source_file(path, kind=Kind.WHOLE_TEXT) for path in paths)
    files = [file for file in files if file.num_bytes]
    if not files:
        raise DataError(f"the standard library at {root} holds no Python source; name a corpus with `--data PATH`")
    description = f"Python standard library source at {root} ({len(files)} files)"
    return Corpus(files=tuple(files), text_field=text_field, description=description)


def _find_files(path: Path) -> tuple[list[SourceFile], int]:
    """Return the files at `path` and how many files of unknown types were left out."""
    if not path.exists():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataError(f"{path} does not exist{near}")
    if path.is_dir():
        return _find_in_folder(path)
    kind = _kind_of(path)
    if kind is None:
        known = sorted({".jsonl", ".parquet", *_SUFFIX_PAIRS, *_TEXT_SUFFIXES})
        near = did_you_mean(_suffix(path), known)
        raise DataError(f"{path} is of unknown type {_suffix(path)!r}{near}; known types: {' '.join(known)}")
    file = _source_file(path, kind=kind)
    if file.num_bytes == 0:
        raise DataError(f"{path} is empty")
    return [file], 0


def _find_in_folder(root: Path) -> tuple[list[SourceFile], int]:
    found, others = [], Counter[str]()
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            kind = _kind_of(path)
            if kind is None:
                others[_suffix(path)] += 1
            elif path.is_file() and path.stat().st_size:
                found.append(_source_file(path, kind=kind))
    if not found:
        seen = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in others.most_common(5))
        raise DataError(f"folder {root} holds no text, JSONL or Parquet file with content (found: {seen or 'nothing'})")
    return found, others.total()


def _raise(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}")


def _suffix(path: Path) -> str:
    pair = "".join(path.suffixes[-2:]).lower()
    return pair if pair in _SUFFIX_PAIRS else path.suffix.lower()


def _kind_of(path: Path) -> Kind | None:
    suffix = _suffix(path)
    if suffix in {".jsonl", ".jsonl.gz"}:
        return Kind.JSONL
    if suffix == ".parquet":
        return Kind.PARQUET
    return Kind.TEXT if suffix in _TEXT_SUFFIXES else None


def _source_file(path: Path, *, kind: Kind) -> SourceFile:
    status = path.stat()
    return SourceFile(path=path, kind=kind, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)
