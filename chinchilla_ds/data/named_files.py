"""Files of a foreign folder: only those named here, only regular ones, and none outside it.

A link may point within the folder, or into the `blobs` of the same repository, as in the snapshots of the Hugging Face
cache. Any other link would let a foreign folder have us read, and copy, arbitrary files.
"""

import os
from pathlib import Path

from chinchilla_ds import structured
from chinchilla_ds.errors import ChinchillaError, DataError, reason

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def find_named(
    folder: Path, name: str, /, *, home: Path | None = None, error: type[ChinchillaError] = DataError
) -> Path | None:
    """Return the real path of a file that lies in the folder or is linked within it; None if there is none.

    Args:
        folder: Where to look.
        name: A file name, without folders.
        home: The folder that links must not leave; None: the folder itself.
        error: The class of the exception to raise.

    Raises:
        ChinchillaError: as `error`: the name is not a plain file name, or the file is a link to somewhere else or
            not a regular file.
    """
    if Path(name).name != name or "\0" in name or name in ("", ".."):
        raise error(f"{folder} names the file {name!r}, which is not a plain name of a file in it")
    path, home = folder / name, (home or folder)
    if not os.path.lexists(path):
        return None
    try:
        real, inside = path.resolve(strict=True), home.resolve(strict=True)
    except (OSError, RuntimeError) as problem:  # RuntimeError: links form a loop
        why = reason(problem) if isinstance(problem, OSError) else "its links form a loop"
        raise error(f"{path} cannot be read: {why}") from None
    if not (real.is_relative_to(inside) or real.parent == _blobs_of(inside)):
        raise error(f"{path} is a link to {real}, outside {home}; only files in that folder are read; copy it there")
    if not real.is_file():
        raise error(f"{path} is not a regular file")
    return real


def read_named(folder: Path, name: str, /, *, home: Path | None = None) -> bytes | None:
    """Return the content of a small file, located by `find_named`; None if there is none.

    Args:
        folder: where to look.
        name: a file name, without folders.
        home: the folder that links must not leave; None: `folder`.

    Raises:
        DataError: as `find_named` says, or it cannot be read, or is too large.
    """
    path = find_named(folder, name, home=home)
    return None if path is None else structured.read_bytes(path, what="file", error=DataError)


def _blobs_of(folder: Path) -> Path | None:
    """Return the folder of a Hugging Face cache snapshot's files, from REPOSITORY/snapshots/REVISION."""
    return folder.parent.parent / _BLOBS if folder.parent.name == _SNAPSHOTS else None
