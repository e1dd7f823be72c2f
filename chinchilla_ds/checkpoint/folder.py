"""The folder of a checkpoint: written aside, made durable, then renamed, so that a folder with the name is complete.

    RUN/checkpoints/step_0000500/    a checkpoint
    RUN/checkpoints/.step_...        one that is being written, replaced, or removed
    RUN/checkpoints/latest           the name of the newest

`manifest.json` in a checkpoint holds the size and the XXH3 hash of every other file. A checkpoint may come from
elsewhere: a file that lies outside of its folder, also behind a link, and what is not a regular file are not read.
Nothing here imports torch.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import xxhash

from chinchilla_ds.errors import CheckpointError, reason
from chinchilla_ds.files import sync, write_durably
from chinchilla_ds.ranges import Ge, Len
from chinchilla_ds.structured import build, read_bytes, read_json

FORMAT_VERSION = 3
"""3: the index of the tensors is JSON. 2: it is torch.distributed.checkpoint's pickle (`dcp_metadata.py`)."""
READABLE_VERSIONS = (2, 3)
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
PLAN_NAME = "plan.json"
DS_CONFIG_NAME = "ds_config.json"
TENSORS_NAME = "tensors"
LATEST_NAME = "latest"
CHECKPOINTS_NAME = "checkpoints"

_NAME = re.compile(r"(?P<replaced>\.)?step_(?P<iteration>\d{7,})(?(replaced)\.replaced)")
"""The name of a checkpoint, or of one that is being replaced by another of the same step."""
_READ_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """The manifest's record of a file."""

    bytes: Annotated[int, Ge(0)]
    xxh3: Annotated[str, Len(32, 32)]
    """128 bits of its content, in hexadecimal: finds damage at the speed of memory, but does not protect against
    forgery."""


def checkpoint_name(iteration: int) -> str:
    """Return the folder name of the checkpoint after `iteration` optimizer steps."""
    return f"step_{iteration:07d}"


def iteration_of(checkpoint: Path) -> int:
    """Return the optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, f"{checkpoint.name} is not the name of a checkpoint"
    return int(match["iteration"])


def run_folder_of(checkpoint: Path, /) -> Path:
    """Return the folder of the run that wrote a checkpoint; of a lone one, the folder that holds it."""
    checkpoints = checkpoint.resolve().parent
    return checkpoints.parent if checkpoints.name == CHECKPOINTS_NAME else checkpoints


def aside_of(checkpoint: Path) -> Path:
    """Return where a checkpoint is written until it is complete."""
    return checkpoint.with_name(f".{checkpoint.name}.partial")


def _replaced_of(checkpoint: Path) -> Path:
    """Return where a checkpoint lies while another of the same step takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.replaced")


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first, damaged ones included.

    One that was being replaced counts if its place is empty: the process was killed between two renames.
    """
    if not checkpoints.is_dir():
        return []
    named = [path for path in checkpoints.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    places = {iteration_of(path): path for path in sorted(named)}  # "." sorts first, so what has the place wins
    return [places[iteration] for iteration in sorted(places, reverse=True)]


def record_file(path: Path) -> FileRecord:
    """Return size and hash of a file."""
    digest, size, buffer = xxhash.xxh3_128(), 0, memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as stream:
        while taken := stream.readinto(buffer):
            digest.update(buffer[:taken])
            size += taken
    return FileRecord(bytes=size, xxh3=digest.hexdigest())


def begin(checkpoint: Path) -> Path:
    """Create the empty folder in which `checkpoint` is written, and return it."""
    aside = aside_of(checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    for left in list_checkpoints(checkpoint.parent):  # of a process that was killed, here and below
        place = left.with_name(checkpoint_name(iteration_of(left)))
        if left != place:
            left.rename(place)
    for stale in checkpoint.parent.glob(".step_*"):
        shutil.rmtree(stale)
    (aside / TENSORS_NAME).mkdir(parents=True)
    return aside


def commit(checkpoint: Path, *, records: Mapping[str, FileRecord]) -> None:
    """Rename a complete checkpoint from its aside folder, then let `latest` name it.

    Another one of the same step is moved away first, and removed last: at every moment one of them exists.

    Args:
        checkpoint: The final folder.
        records: Record of every file, by its path within the folder; the files must already be on the disk.
    """
    aside = aside_of(checkpoint)
    files = {name: {"bytes": record.bytes, "xxh3": record.xxh3} for name, record in sorted(records.items())}
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    # no line break at the end, whose loss would go unnoticed: the manifest has no hash itself
    write_durably(aside / MANIFEST_NAME, json.dumps(manifest, indent=2))
    for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        sync(folder)
    replaced = _replaced_of(checkpoint)
    if checkpoint.exists():
        checkpoint.rename(replaced)
    aside.rename(checkpoint)
    sync(checkpoint.parent)
    write_durably(checkpoint.parent / LATEST_NAME, checkpoint.name + "\n")
    if replaced.exists():
        remove(replaced)


def abandon(checkpoint: Path) -> None:
    """Remove what has been written of a checkpoint that cannot be finished."""
    shutil.rmtree(aside_of(checkpoint), ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint: its name first, so that an incomplete one never has the name."""
    removed = checkpoint.with_name(f".{checkpoint_name(iteration_of(checkpoint))}.removed")
    checkpoint.rename(removed)
    shutil.rmtree(removed)


def prune(checkpoints: Path, *, keep: int, milestone_iters: int | None) -> list[Path]:
    """Remove all but the newest `keep` checkpoints and the milestones; return what was removed.

    Args:
        checkpoints: The folder of a run's checkpoints.
        keep: At least 1.
        milestone_iters: Checkpoints at multiples of this many steps are kept permanently; None: there are none.
    """
    old = list_checkpoints(checkpoints)[keep:]
    removed = [path for path in old if not (milestone_iters and iteration_of(path) % milestone_iters == 0)]
    for path in removed:
        remove(path)
    return removed


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """The files of a checkpoint."""

    format_version: int
    files: dict[str, FileRecord]
    """Every file but the manifest itself, by its path within the folder."""

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: one is outside the folder, or is not the name of a file.
        """
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not name.isprintable() or not parts or "/" in parts or ".." in parts:
                raise ValueError(f"the file {name!r:.80} lies outside of the checkpoint")


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing or has another format.
    """
    path, what = file_inside(checkpoint, MANIFEST_NAME), "manifest"
    data: Any = read_json(path, what=what, error=CheckpointError)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version is None:
        raise CheckpointError(f"{path} is damaged: it is not a manifest")
    if version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise CheckpointError(f"{path} has format version {version!r:.80}; this version reads {readable}")
    manifest: CheckpointManifest = build(CheckpointManifest, data, where=f"{path}: {what}", error=CheckpointError)
    return manifest


def inside(checkpoint: Path, name: str, /) -> Path:
    """Return the path of a file or folder of a checkpoint.

    Raises:
        CheckpointError: it is missing, or lies outside of the checkpoint, behind a link.
    """
    path = checkpoint / name
    try:
        if not path.resolve(strict=True).is_relative_to(checkpoint.resolve(strict=True)):
            raise CheckpointError(f"{path} is a link out of the checkpoint, and is not read")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    except RuntimeError:  # what pathlib makes of links that lead to one another
        raise CheckpointError(f"{path} cannot be read: its links lead in a circle") from None
    return path


def file_inside(checkpoint: Path, name: str, /) -> Path:
    """Return the path of a regular file of a checkpoint.

    Raises:
        CheckpointError: as for `inside`; or it is a folder, a FIFO, a socket or a device.
    """
    path = inside(checkpoint, name)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    return path


def read_small_file(checkpoint: Path, name: str, /) -> str:
    """Return the text of a small file of a checkpoint.

    Raises:
        CheckpointError: as for `file_inside`; or it is too large, or not UTF-8.
    """
    content = read_bytes(file_inside(checkpoint, name), what="file", error=CheckpointError)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{checkpoint / name} is not UTF-8: {error.reason} at byte {error.start}") from None


def damage(checkpoint: Path, *, names: frozenset[str] | None = None) -> Iterator[str]:
    """Yield the problems of a checkpoint's files: missing, of another size, with other content.

    Args:
        checkpoint: A checkpoint with a manifest.
        names: The files to read; None: all of them. Sizes are checked in any case.
    """
    files = read_manifest(checkpoint).files
    for name in (STATE_NAME, PLAN_NAME):
        if name not in files:
            yield f"{checkpoint / MANIFEST_NAME} does not name {name}"
    for name, record in files.items():
        try:
            path = file_inside(checkpoint, name)
            size = path.stat().st_size
            if size != record.bytes:
                yield f"{path} has {size} bytes and the manifest says {record.bytes}"
            elif (names is None or name in names) and record_file(path) != record:
                yield f"{path} is damaged: its content does not match the hash in the manifest"
        except CheckpointError as error:
            yield from error.problems
        except OSError as error:
            yield f"{checkpoint / name} cannot be read: {reason(error)}"


def problems_of(checkpoint: Path) -> list[str]:
    """Return all problems of a checkpoint's files; empty if they match the manifest."""
    try:
        return list(damage(checkpoint))
    except CheckpointError as error:
        return list(error.problems)


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints of `path`, newest first: one itself, a folder of them, or a run.

    Raises:
        CheckpointError: there is none.
    """
    with reported_as(path):
        if (path / MANIFEST_NAME).is_file() and (path / TENSORS_NAME).is_dir():
            return [path]
        for folder in (path / CHECKPOINTS_NAME, path):
            if checkpoints := list_checkpoints(folder):
                return checkpoints
    what = "does not exist" if not path.exists() else "holds no checkpoint"
    raise CheckpointError(f"{path} {what}; name a run's folder, its {CHECKPOINTS_NAME} or one step_XXXXXXX of them")


@contextlib.contextmanager
def reported_as(checkpoint: Path) -> Iterator[None]:
    """Turn the operating system's error on reading a checkpoint into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {reason(error)}") from None
