"""Files and folders that are complete under their name, or absent: written aside, then renamed.

`whole_file` and `whole_folder` are the one way to do so. The others say what else is promised: `write_durably` survives
a power failure, `write_text` and `new_folder` are for what the user names on the command line. What is written aside
lies beside its place as `.NAME.RANDOM.partial`; a process that is killed leaves that, and nothing under the name.

A checkpoint, which many ranks write together, has its own names aside (`checkpoint/folder.py`).
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.structured import open_regular

if TYPE_CHECKING:
    import numpy.typing as npt

_ASIDE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_LONGEST_NAME_BYTES = 192
"""Bytes of a name that are repeated in its name aside, which is limited to 255; a longer one is replaced by a hash."""


# ---- whole, or not there ---------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path, /) -> Iterator[Path]:
    """Yield the path of a file to be written, which is named `path` once the block is done, and removed if it fails."""
    aside = _aside_of(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        with suppress(OSError):  # the earlier error is raised
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, /) -> Iterator[Path]:
    """Yield a new folder that is named `folder` once the block is done, and removed if it fails.

    Raises:
        OSError: it cannot be written, or `folder` holds something by then.
    """
    with _folder_aside(folder) as aside:
        yield aside
        aside.rename(folder)


@contextmanager
def scratch_folder(beside: Path, /) -> Iterator[Path]:
    """Yield a new folder beside a path, removed in the end, as is what a killed process has left of one like it."""
    for left in beside.parent.glob(".*.partial"):
        match = _ASIDE.fullmatch(left.name)
        if match and match["name"] == _short(beside.name):
            _remove(left)
    with _folder_aside(beside) as aside:
        yield aside


def remove_asides(folder: Path, /) -> None:
    """Remove what killed processes have left of whole files and folders, in `folder` and below."""
    for path in sorted(folder.rglob(".*.partial")):
        if _ASIDE.fullmatch(path.name):
            _remove(path)


@contextmanager
def _folder_aside(path: Path) -> Iterator[Path]:
    aside = _aside_of(path)
    try:
        aside.mkdir(parents=True)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside_of(path: Path) -> Path:
    """Return a path beside another that no other process takes: process ids repeat between the hosts of a cluster."""
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.partial")


def _short(name: str) -> str:
    content = os.fsencode(name)
    return name if len(content) <= _LONGEST_NAME_BYTES else hashlib.blake2b(content, digest_size=16).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- through to the disk ---------------------------------------------------------------------------------------------


def write_durably(path: Path, content: str | bytes, /) -> None:
    """Write a whole small file, its content and its name through to the disk.

    Raises:
        OSError: it cannot be written; an existing file is kept.
    """
    with whole_file(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(aside)
    sync(path.parent)


def sync(path: Path, /) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- what the user names ---------------------------------------------------------------------------------------------


def write_text(path: Path, /, *, text: str, named: str | None = "out") -> None:
    """Write a whole text file where the user asks for it; see `write_output`.

    Args:
        path: the file.
        text: its content.
        named: the parameter that named it, for messages; None names only the path.
    """
    write_output(path, content=text.encode(), named=named)


def write_output(path: Path, /, *, content: bytes, named: str | None = "out") -> None:
    """Write a whole file or none where the user asks for it.

    A link stays, and what it points to is written. A device or a FIFO (`/dev/stdout`, `>(less)`) is written to as
    it is: renaming over it would put a file in its place, for every program of the machine.

    Args:
        path: The file.
        content: All of it.
        named: The parameter that named it, for messages; None names the path alone.

    Raises:
        OutputError: the folder is missing, cannot be written to, or the disk is full.
    """
    if path.is_dir():
        raise OutputError(f"{_shown(path, named)} cannot be written: it is a folder; name a file in it")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            with whole_file(Path(os.path.realpath(path))) as aside:
                aside.write_bytes(content)
    except OSError as error:
        near = "" if path.parent.is_dir() else f"; {path.parent} is not a folder"
        raise OutputError(f"{_shown(path, named)} cannot be written: {reason(error)}{near}") from None


@contextmanager
def new_folder(out: Path, /, *, named: str | None = "out") -> Iterator[Path]:
    """Yield a folder that becomes `out` when all goes well, and is removed when it does not.

    Raises:
        OutputError: `out` is there already and not empty, or cannot be written.
    """
    check_free(out, named=named)
    try:
        with scratch_folder(out) as aside:
            yield aside
            aside.rename(out)
    except OSError as error:
        raise OutputError(f"{_shown(out, named)} cannot be written: {reason(error)}") from None


def check_free(out: Path, /, *, named: str | None = "out") -> None:
    """Check that `out` is not there, or is an empty folder.

    Raises:
        OutputError: it is there, or has no name of its own.
    """
    if not out.name:
        raise OutputError(f"{_shown(out, named)} cannot be replaced; name a new folder")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise OutputError(f"{_shown(out, named)} exists already, and nothing is overwritten; name a new folder")


def _shown(path: Path, named: str | None) -> str:
    return str(path) if named is None else f"`{named}={path}`"


# ---- formats ---------------------------------------------------------------------------------------------------------


def write_json(path: Path, values: object, /) -> None:
    """Write a whole file of indented JSON."""
    with whole_file(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_array(path: Path, values: "npt.NDArray[Any]", /) -> None:
    """Write what `numpy.save` writes; on a full disk the error says so, whereas numpy's only counts items.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import numpy as np

    values = np.ascontiguousarray(values)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
        stream.write(values.data)


def check_arrays(folder: Path, /) -> None:
    """Check that every `.npy` file in a folder is a whole array of numbers, before others load it.

    Megatron-core lets numpy unpickle what it loads, which runs the code in a file that is not an array.

    Raises:
        DataError: naming the first that is not.
    """
    import numpy as np

    for path in sorted(folder.glob("*.npy")):
        try:
            with open_regular(path) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                wanted = stream.tell() + dtype.itemsize * math.prod(shape)
                sound = not dtype.hasobject and path.stat().st_size == wanted
        except (ValueError, OSError):
            sound = False
        if not sound:
            raise DataError(f"{path} is damaged; remove the folder {folder}, and it is made again")
