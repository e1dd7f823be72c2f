"""Where text comes from: files and folders, Hugging Face data sets, or the running Python's own standard library."""

import glob
import os
import re
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.data.reading.kinds import SUFFIXES, FileKind, kind_of, suffix_of
from chinchilla_ds.data.reading.streams import PACKED_SUFFIXES
from chinchilla_ds.errors import DataError, did_you_mean, reason

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""

MAX_PROBLEMS = 20
"""Problems listed by one error; the rest are counted."""

HUB = "hf://"
"""Prefix of the name of a Hugging Face data set: hf://org/name[:config][@split]."""
_HUB_AS_PATH = "hf:/"
"""The same prefix in a `Path`, which collapses double slashes."""

DEFAULT_NAME = "corpus"
"""Name of an unnamed source."""

NAME = re.compile(r"[^\W_][\w.-]*")
"""A source's name: letters of any script, digits, '_', '-' and '.', since it names files."""
_MAX_NAME_BYTES = 100

_SHOWN_REASONS = 6
_NOT_REGULAR = "not a regular file"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the corpus, or something read like one."""

    path: Path
    kind: FileKind
    num_bytes: int
    """Size on disk, bytes; 0 if unknown."""
    modified_ns: int
    """Time of the last change, nanoseconds since the epoch; 0 if unknown."""
    hub_name: str | None = None
    """For FileKind.HUB: the name as the user wrote it."""

    @property
    def place(self) -> str:
        """The file's name in messages."""
        return self.hub_name or str(self.path)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The files of one named source, in the order they are read."""

    files: tuple[SourceFile, ...]
    text_field: str
    description: str
    """A one-line description."""
    name: str = DEFAULT_NAME
    weight: float | None = None
    """Share of the training samples; None: by tokens."""
    max_epochs: float | None = None
    """Largest number of passes of a run over it; None: as many as its share requires."""

    @property
    def num_bytes(self) -> int:
        """Size of all files on disk, in bytes."""
        return sum(file.num_bytes for file in self.files)


def name_problem(name: str, /) -> str | None:
    """Return why a source cannot have this name, or None."""
    if NAME.fullmatch(name) and len(name.encode()) <= _MAX_NAME_BYTES:
        return None
    return (
        f"source name {name!r} must be letters, digits, '_', '-' and '.', at most {_MAX_NAME_BYTES} bytes, and begin "
        "with a letter or digit (it names files)"
    )


def find_source(paths: Sequence[str], *, text_field: str, name: str = DEFAULT_NAME, keep_empty: bool = False) -> Corpus:
    """Return the files that `paths` name, or the standard library's if `paths` is empty.

    Folders are searched recursively in sorted order. Entries that are not read are counted by reason: hidden
    entries, files of unknown types, empty ones, links to folders. A pattern such as `data/*.jsonl` stands for all its
    matches. Links to files are followed. A file that is named twice is read once. With `keep_empty`, a named file that
    is empty is kept, so that the reader counts it.

    Args:
        paths: files, folders, patterns and names of data sets.
        text_field: name of the field with the text.
        name: the source's name.
        keep_empty: whether a named empty file is kept.

    Raises:
        DataError: lists every path that is missing, unreadable, empty, of an unknown type, or not a regular file.
    """
    if not paths:
        return _standard_library(text_field=text_field, name=name)
    problems: list[str] = []
    left_out = Counter[str]()
    unique: dict[str, SourceFile] = {}
    for path in paths:
        try:
            matches = _find(path, keep_empty=keep_empty, left_out=left_out)
        except DataError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(f"cannot read {path}: {reason(error)}")
        else:
            unique |= dict(zip(identities(matches), matches, strict=True))
    raise_problems(problems)
    shown = ", ".join(sorted(paths)[:3]) + (", ..." if paths[3:] else "")
    note = f"; left out: {_reasons(left_out)}" if left_out.total() else ""
    description = f"{shown} ({len(unique)} file{'s' if len(unique) > 1 else ''}{note})"
    files = tuple(sorted(unique.values(), key=lambda file: file.place))
    return Corpus(files=files, text_field=text_field, description=description, name=name)


def _reasons(left_out: Counter[str]) -> str:
    """Return how many entries were left out, by reason."""
    shown = (+left_out).most_common(_SHOWN_REASONS)
    more = left_out.total() - sum(count for _, count in shown)
    return ", ".join([*(f"{count} x {why}" for why, count in shown), *([f"{more} more"] if more else [])])


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
        files.extend(_whole_text(path) for path in paths)
    files = [file for file in files if file.num_bytes]
    if not files:
        raise DataError(f"the standard library at {root} holds no Python source; name a corpus by `data.paths`")
    description = f"Python standard library source at {root} ({len(files)} files)"
    return Corpus(files=tuple(files), text_field=text_field, description=description, name=name)


def _find(name: str, *, keep_empty: bool, left_out: Counter[str]) -> list[SourceFile]:
    """Return the files of a path, a pattern or a data set's name; count what is left out."""
    if name.startswith(_HUB_AS_PATH):
        name = HUB + name.removeprefix(_HUB_AS_PATH).lstrip("/") if not name.startswith(HUB) else name
        return [SourceFile(path=Path(name), kind=FileKind.HUB, num_bytes=0, modified_ns=0, hub_name=name)]
    if not name.strip() or "\0" in name:
        raise DataError(f"a path is {name!r}, which names no file")
    if not Path(name).exists() and glob.has_magic(name):
        return _find_matches(name, keep_empty=keep_empty, left_out=left_out)
    path = Path(name)
    if not path.exists():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataError(f"{path} does not exist{near}")
    if path.is_dir():
        return _find_in_folder(path, left_out=left_out)
    file = _source_file(path)
    if isinstance(file, str):
        raise DataError(_why_not(path, file))
    if file.num_bytes == 0 and not keep_empty:
        raise DataError(f"{path} is empty")
    return [file]


def _why_not(path: Path, why: str) -> str:
    if why == _NOT_REGULAR:
        return f"{path} is {why}: a pipe or a device cannot be read twice; write its content to a file"
    suffix = suffix_of(path)
    if not suffix:
        return f"{path} is {why}: it has no suffix, and its first bytes are neither text nor JSON nor Parquet"
    return f"{path} is of unknown type {suffix!r}{did_you_mean(suffix, SUFFIXES)}; known types: {_known_types()}"


def _known_types() -> str:
    return f"{' '.join(SUFFIXES)}, optionally followed by {' '.join(PACKED_SUFFIXES)}"


def _find_matches(pattern: str, *, keep_empty: bool, left_out: Counter[str]) -> list[SourceFile]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise DataError(f"nothing matches {pattern}")
    files: list[SourceFile] = []
    unread = Counter[str]()
    for match in matches:
        if Path(match).is_dir():
            files += _folder_files(Path(match), left_out=unread)
        elif isinstance(file := _source_file(Path(match)), str):
            unread[file] += 1
        elif file.num_bytes or keep_empty:
            files.append(file)
        else:
            raise DataError(f"{match} is empty")
    if not files:
        raise DataError(f"{pattern} matches no file of a known type with content (found: {_reasons(unread)})")
    left_out.update(unread)
    return files


def _find_in_folder(root: Path, *, left_out: Counter[str]) -> list[SourceFile]:
    unread = Counter[str]()
    files = _folder_files(root, left_out=unread)
    if not files:
        seen = _reasons(unread) or "nothing"
        raise DataError(f"folder {root} holds no file of a known type with content (found: {seen})")
    left_out.update(unread)
    return files


def _folder_files(root: Path, *, left_out: Counter[str]) -> list[SourceFile]:
    files = []
    for folder, folders, names in os.walk(root, onerror=_raise):
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left_out["link to a folder"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        if "dataset_dict.json" in names:
            raise DataError(f"{folder} holds several splits; name one of them: {', '.join(map(str, folders))}")
        if "state.json" in names and "dataset_info.json" in names:
            files.append(arrow_folder(Path(folder)))
            folders.clear()
            continue
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            file = _source_file(path)
            if isinstance(file, str):
                left_out[file] += 1
            elif file.num_bytes:
                files.append(file)
            else:
                left_out["empty"] += 1
    return files


def _raise(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}")


def identities(files: Sequence[SourceFile], /) -> list[str]:
    """Return the identities of files: names of data sets, and paths without links.

    Like `path.resolve()`, at a fraction of its cost if many files are in one folder.
    """
    folders: dict[Path, str] = {}
    names = []
    for file in files:
        path, folder = file.path, file.path.parent
        if file.hub_name is None and not os.path.islink(path):
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            names.append(os.path.join(folders[folder], path.name))
        else:
            names.append(file.hub_name or os.path.realpath(path))
    return names


def arrow_folder(path: Path, /) -> SourceFile:
    """Return a folder written by `datasets`.

    Raises:
        DataError: something in it is not a regular file.
        OSError: it cannot be read.
    """
    status = {file.name: file.stat() for file in path.iterdir()}
    if odd := sorted(name for name, entry in status.items() if not stat.S_ISREG(entry.st_mode)):
        raise DataError(f"{path} is a folder of Arrow files; {', '.join(odd)} in it is {_NOT_REGULAR}")
    return SourceFile(
        path=path,
        kind=FileKind.ARROW,
        num_bytes=sum(entry.st_size for entry in status.values()),
        modified_ns=max(entry.st_mtime_ns for entry in status.values()),
    )


def _source_file(path: Path) -> SourceFile | str:
    """Return a file, or why it is left out."""
    try:
        status = path.stat()
    except FileNotFoundError:  # the file may also have been removed since it was listed
        return "broken link"
    if not stat.S_ISREG(status.st_mode):
        return _NOT_REGULAR
    kind = kind_of(path) if status.st_size or suffix_of(path) else FileKind.TEXT
    if kind is None:
        return suffix_of(path) or "not text"
    return SourceFile(path=path, kind=kind, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _whole_text(path: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(path=path, kind=FileKind.WHOLE_TEXT, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def inputs_of(corpora: Sequence[Corpus], /) -> list[dict[str, str | int]]:
    """Return the files of all sources by name and size, as listed in a prepared folder."""
    return [
        {"source": corpus.name, "path": file.place, "bytes": file.num_bytes}
        for corpus in corpora
        for file in corpus.files
    ]
