"""Checks before a run that the output folder can hold it, and the error if it turns out that it cannot."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.units import format_bytes

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_PERMISSION = {errno.EACCES, errno.EPERM}
_TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|iostream")
"""torch.save's message on a full disk."""


def check_output(output: Path, *, num_bytes: int) -> None:
    """Check, without leaving anything behind, that checkpoints of `num_bytes` can be written below `output`.

    Raises:
        OutputError: it is not a folder, cannot be written to, or is on a disk too full for a checkpoint.
    """
    nearest = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise OutputError(f"`output={output}` cannot be a folder: {nearest} is a file; name another place")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise OutputError(f"`output={output}` cannot be written: {nearest}: {reason(error)}") from None
    if free < num_bytes:
        raise OutputError(
            f"`output={output}` has {format_bytes(free)} free, and a checkpoint takes at least "
            f"{format_bytes(num_bytes)}; free some, or name another disk by `output`"
        )


@contextmanager
def output_errors(run_folder: Path) -> Iterator[None]:
    """Raise OutputError for errors that mean that the disk is full or read-only.

    Any other error passes.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _is_about_output(error, run_folder):
            raise
        why = reason(error) if isinstance(error, OSError) else "the disk took only a part of a file"
        free = shutil.disk_usage(run_folder).free
        raise OutputError(
            f"cannot write to {run_folder}: {why}; {format_bytes(free)} are free; free some, or name another disk by "
            "`output`"
        ) from None


def _is_about_output(error: OSError | RuntimeError, run_folder: Path) -> bool:
    if not isinstance(error, OSError):
        return bool(_TORCH_CANNOT_WRITE.search(str(error)))
    if error.errno in _PERMISSION:
        return str(error.filename or "").startswith(str(run_folder))
    return error.errno in _DISK
