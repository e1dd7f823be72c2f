"""The content of a checkpoint apart from the values of its tensors. Nothing here imports torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.dcp_metadata import METADATA_NAME, read_metadata
from chinchilla_ds.checkpoint.index import INDEX_NAME, TensorIndex, read_index
from chinchilla_ds.checkpoint.state import CheckpointState, plan_of_checkpoint
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.run_plan import RunPlan

_DCP_VERSION = 2
"""The format version of a checkpoint whose index is torch's pickle."""
_TOKENIZER_NAMES = ("tokenizer.model", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checkpoint's small files."""

    state: CheckpointState
    plan: RunPlan
    index: TensorIndex


def read_contents(checkpoint: Path, /) -> Contents:
    """Read a checkpoint's small files; the manifest must name them, but for the tokenizer.

    Raises:
        CheckpointError: one is missing, elsewhere, or invalid.
    """
    manifest = folders.read_manifest(checkpoint)
    state = CheckpointState.load(folders.file_inside(checkpoint, folders.STATE_NAME))
    folders.file_inside(checkpoint, folders.PLAN_NAME)
    plan = plan_of_checkpoint(checkpoint)
    find_tokenizer(checkpoint)
    return Contents(state=state, plan=plan, index=_index(checkpoint, manifest, plan=plan))


def _index(checkpoint: Path, manifest: folders.CheckpointManifest, *, plan: RunPlan) -> TensorIndex:
    """Return the index of the tensors, whose blocks lie in files that the manifest names."""
    is_pickle, place = manifest.format_version == _DCP_VERSION, f"{folders.TENSORS_NAME}/"
    name = f"{place}{METADATA_NAME if is_pickle else INDEX_NAME}"
    if name not in manifest.files:
        raise CheckpointError(f"{checkpoint / folders.MANIFEST_NAME} does not name {name}")
    path = folders.file_inside(checkpoint, name)
    index = (read_metadata if is_pickle else read_index)(path)
    named = [file for file in index.files if place + file in manifest.files]
    sizes = {file: folders.file_inside(checkpoint, place + file).stat().st_size for file in named}
    try:
        index.check_kinds(plan.optimizer.states)
        index.check_files(sizes)
    except ValueError as problem:
        raise CheckpointError(f"{path}: {problem}") from None
    return index


def find_tokenizer(checkpoint: Path, /) -> Path | None:
    """Return the tokenizer's file or folder, which may have been put there by hand: the manifest need not name it.

    Raises:
        CheckpointError: it holds what is not a regular file, or lies outside of the checkpoint.
    """
    name = next((name for name in _TOKENIZER_NAMES if os.path.lexists(checkpoint / name)), None)
    if name is None:
        return None
    if not folders.inside(checkpoint, name).is_dir():
        return folders.file_inside(checkpoint, name)
    for path in (checkpoint / name).rglob("*"):
        file = path.relative_to(checkpoint).as_posix()
        (folders.inside if path.is_dir() else folders.file_inside)(checkpoint, file)
    return checkpoint / name


def problems_of(checkpoint: Path, /) -> list[str]:
    """Return all problems of a checkpoint, of its files and their content; empty if it is intact."""
    if problems := folders.problems_of(checkpoint):
        return problems
    try:
        read_contents(checkpoint)
    except CheckpointError as error:
        return list(error.problems)
    return []
