"""Where text comes from: files and folders, Hugging Face data sets, or the running Python's own standard library."""

import functools
import glob
import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from chinchilla_ds.config import DataConfig
from chinchilla_ds.errors import DataError, did_you_mean, reason

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""

MAX_PROBLEMS = 20
"""Problems listed by one error; the rest is counted."""

HUB = "hf://"
"""Begins the name of a Hugging Face data set: hf://org/name[:config][@split]."""

DEFAULT_NAME = "corpus"
"""Name of a source that was given none."""

_TEXT_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("txt", "text", "md", "rst", "tex", "org", "html"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "cuh", "rs", "go", "java", "kt", "scala", "js", "ts", "rb"),
        *("php", "pl", "lua", "jl", "r", "hs", "ml", "swift", "sh", "sql"),
    )
)
_COMPRESSED = frozenset({".gz", ".zst"})
_COMPRESSIBLE = frozenset({".jsonl", ".csv", ".txt"})


class Kind(StrEnum):
    """How a file is read."""

    TEXT = "text"
    WHOLE_TEXT = "whole text"
    """One document whatever its size; a file that is not UTF-8 is skipped and counted (standard library only)."""
    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "Parquet"
    ARROW = "Arrow"
    """A folder that `datasets.Dataset.save_to_disk` wrote."""
    HUB = "Hugging Face"
    """A data set by name, streamed."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the corpus, or what is read like one."""

    path: Path
    kind: Kind
    num_bytes: int
    """Size on disk; 0 where it is not known."""
    modified_ns: int
    """Time of the last change, nanoseconds since the epoch; 0 where it is not known."""
    hub_name: str | None = None
    """What the user wrote, of Kind.HUB."""

    @property
    def place(self) -> str:
        """How messages name it."""
        return self.hub_name or str(self.path)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The files of one named source, in the order they are read."""

    files: tuple[SourceFile, ...]
    text_field: str
    description: str
    """One line for people."""
    name: str = DEFAULT_NAME
    weight: float | None = None
    """Share of the training samples; None: by tokens."""
    max_epochs: float | None = None
    """How often a run may read it; None: as often as its share asks for."""

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk, in bytes."""
        return sum(file.num_bytes for file in self.files)


def find_corpus(data: DataConfig) -> Corpus:
    """Return the files that `data.paths` names, or the standard library's where it names none.

    Raises:
        DataError: see `find_source`.
    """
    return find_source([str(path) for path in data.paths], text_field=data.text_field)


def find_source(paths: Sequence[str], *, text_field: str, name: str = DEFAULT_NAME, keep_empty: bool = False) -> Corpus:
    """Return the files that `paths` name, or the standard library's where there are none.

    Folders are searched recursively in sorted order; hidden entries and files of unknown types in them are left out.
    A pattern such as `data/*.jsonl` means all that match. What is named twice is read once. With `keep_empty` an empty
    file that is named is kept, for the reader to count it.

    Raises:
        DataError: listing every path that is missing, unreadable, empty, or of an unknown type.
    """
    if not paths:
        return _standard_library(text_field=text_field, name=name)
    problems: list[str] = []
    left_out = 0
    unique: dict[str, SourceFile] = {}
    for path in paths:
        try:
            found, others = _find(path, keep_empty=keep_empty)
        except DataError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(f"cannot read {path}: {reason(error)}")
        else:
            unique |= dict(zip(identities(found), found, strict=True))
            left_out += others
    raise_problems(problems)
    shown = ", ".join(sorted(paths)[:3]) + (", ..." if paths[3:] else "")
    note = f", {left_out} files of other types left out" if left_out else ""
    description = f"{shown} ({len(unique)} file{'s' if len(unique) > 1 else ''}{note})"
    files = tuple(sorted(unique.values(), key=lambda file: file.place))
    return Corpus(files=files, text_field=text_field, description=description, name=name)


def raise_problems(problems: Sequence[str], /) -> None:
    """Raise one DataError that lists the problems, the first `MAX_PROBLEMS` of them, if there are any."""
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = [f"... and {more} more problem{'s' if more > 1 else ''} of this kind"] if more > 0 else []
        raise DataError([*problems[:MAX_PROBLEMS], *tail])


def _standard_library(*, text_field: str, name: str) -> Corpus:
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
    return Corpus(files=tuple(files), text_field=text_field, description=description, name=name)


def _find(name: str, *, keep_empty: bool) -> tuple[list[SourceFile], int]:
    """Return the files that a path, a pattern or a data set's name means, and how many were left out."""
    if name.startswith(HUB):
        return [SourceFile(path=Path(name), kind=Kind.HUB, num_bytes=0, modified_ns=0, hub_name=name)], 0
    if not Path(name).exists() and glob.has_magic(name):
        return _find_matches(name, keep_empty=keep_empty)
    path = Path(name)
    if not path.exists():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataError(f"{path} does not exist{near}")
    if path.is_dir():
        return _find_in_folder(path)
    kind = _kind_of(path)
    if kind is None:
        known = sorted({".jsonl", ".csv", ".parquet", *_TEXT_SUFFIXES, *_compressed_suffixes()})
        near = did_you_mean(_suffix(path), known)
        raise DataError(f"{path} is of unknown type {_suffix(path)!r}{near}; known types: {' '.join(known)}")
    file = _source_file(path, kind=kind)
    if file.num_bytes == 0 and not keep_empty:
        raise DataError(f"{path} is empty")
    return [file], 0


def _find_matches(pattern: str, *, keep_empty: bool) -> tuple[list[SourceFile], int]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise DataError(f"nothing matches {pattern}")
    found, others = zip(*(_find(match, keep_empty=keep_empty) for match in matches), strict=True)
    return [file for files in found for file in files], sum(others)


def _find_in_folder(root: Path) -> tuple[list[SourceFile], int]:
    found, others = [], Counter[str]()
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "dataset_dict.json" in names:
            raise DataError(f"{folder} holds several splits; name one of them: {', '.join(map(str, folders))}")
        if "state.json" in names and "dataset_info.json" in names:
            found.append(_arrow_folder(Path(folder)))
            folders.clear()
            continue
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            kind = _kind_of(path)
            if kind is None:
                others[_suffix(path)] += 1
            elif (file := _regular_file(path, kind=kind)) is not None and file.num_bytes:
                found.append(file)
    if not found:
        seen = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in others.most_common(5))
        raise DataError(f"folder {root} holds no file of a known type with content (found: {seen or 'nothing'})")
    return found, others.total()


def _raise(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}")


def identities(files: Sequence[SourceFile], /) -> list[str]:
    """Return what tells files apart: names of data sets, and paths without links.

    As `path.resolve()`, at a fraction of its cost where many files lie in one folder.
    """
    folders: dict[Path, str] = {}
    found = []
    for file in files:
        path, folder = file.path, file.path.parent
        if file.hub_name is None and not os.path.islink(path):
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            found.append(os.path.join(folders[folder], path.name))
        else:
            found.append(file.hub_name or os.path.realpath(path))
    return found


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    pair = "".join(suffixes)
    return pair if pair in _compressed_suffixes() else path.suffix.lower()


@functools.cache
def _compressed_suffixes() -> frozenset[str]:
    return frozenset(inner + outer for inner in _COMPRESSIBLE for outer in _COMPRESSED)


def _kind_of(path: Path) -> Kind | None:
    suffix = _suffix(path)
    inner = suffix.removesuffix(".gz").removesuffix(".zst")
    kinds = {".jsonl": Kind.JSONL, ".csv": Kind.CSV, ".parquet": Kind.PARQUET}
    return kinds.get(inner, Kind.TEXT if inner in _TEXT_SUFFIXES else None)


def _arrow_folder(path: Path) -> SourceFile:
    status = [file.stat() for file in path.iterdir()]
    return SourceFile(
        path=path,
        kind=Kind.ARROW,
        num_bytes=sum(one.st_size for one in status),
        modified_ns=max(one.st_mtime_ns for one in status),
    )


def _regular_file(path: Path, *, kind: Kind) -> SourceFile | None:
    try:
        status = path.stat()
    except OSError:  # a link to nothing, or gone since it was listed
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return SourceFile(path=path, kind=kind, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _source_file(path: Path, *, kind: Kind) -> SourceFile:
    status = path.stat()
    return SourceFile(path=path, kind=kind, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)
