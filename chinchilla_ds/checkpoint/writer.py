"""Checkpoints from one process: of foreign weights, and of other checkpoints."""

import dataclasses
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.index import WEIGHT
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.files import sync, write_durably
from chinchilla_ds.run_plan import RunPlan

_LIBRARIES = ("chinchilla-ds", "torch", "deepspeed", "megatron-core")


@dataclass(frozen=True, kw_only=True)
class WeightRows:
    """A weight that is read a few rows at a time, as they are written."""

    shape: tuple[int, ...]
    read: Callable[[slice], Tensor]
    """Returns the rows of a slice with start and stop, in FP32."""


def library_versions() -> dict[str, str]:
    """Return the versions of the software, as recorded in a checkpoint."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def write_checkpoint(
    checkpoint: Path,
    /,
    *,
    plan: RunPlan,
    ds_config: Mapping[str, Any],
    weights: Iterable[tuple[str, Tensor | WeightRows]],
    tokenizer: Path | None = None,
    state: CheckpointState | None = None,
) -> Path:
    """Write a checkpoint from one process; one weight is in memory at a time, or some of its rows.

    Args:
        checkpoint: The folder to create; its name must be that of a checkpoint.
        plan: The plan of the weights.
        ds_config: The DeepSpeed JSON to resume with.
        weights: Global names and weights; a name `exp_avg/NAME` is that state of NAME, of the plan's optimizer.
        tokenizer: A SentencePiece model, or a Hugging Face folder; copied.
        state: The run's state; None for weights alone, before the first step.

    Raises:
        OutputError: the folder already exists, or cannot be written.
    """
    if checkpoint.exists():
        raise OutputError(f"{checkpoint} exists already; name a new folder")
    state = state or CheckpointState(
        iteration=0,
        data_step=0,
        attempts=0,
        optimizer_step=0,
        elapsed_s=0.0,
        world_size=1,
        versions=library_versions(),
    )
    try:
        aside = folders.begin(checkpoint)
        write_small_files(aside, plan=plan, ds_config=ds_config, state=state, tokenizer=tokenizer)
        blocks = (_block(_key(name), weight) for name, weight in weights)
        tensors.save_tensors(blocks, folder=aside / folders.TENSORS_NAME)
        records = {str(path.relative_to(aside)): folders.record_file(path) for path in files_below(aside)}
        folders.commit(checkpoint, records=records)
    except OSError as error:
        folders.abandon(checkpoint)
        raise OutputError(f"cannot write the checkpoint {checkpoint}: {reason(error)}") from None
    except BaseException:
        folders.abandon(checkpoint)
        raise
    return checkpoint


def _key(name: str) -> str:
    return name if "/" in name else f"{WEIGHT}/{name}"


def _block(key: str, weight: Tensor | WeightRows) -> tensors.Block:
    if isinstance(weight, Tensor):
        return tensors.whole_block(key, weight.detach().float().contiguous())
    whole = tensors.whole_block(key, torch.empty(weight.shape, device="meta"))
    return dataclasses.replace(
        whole, read=lambda part: weight.read(slice(part.offsets[0], part.offsets[0] + len(part.values)))
    )


def write_small_files(
    aside: Path, *, plan: RunPlan, ds_config: Mapping[str, Any], state: CheckpointState, tokenizer: Path | None
) -> None:
    """Write everything except the tensors, and flush it to the disk.

    Args:
        aside: the folder in which the checkpoint is written.
        plan: the plan of the weights.
        ds_config: the DeepSpeed JSON to resume with.
        state: the run's state.
        tokenizer: a SentencePiece model, or a Hugging Face folder; copied. None: none is written.
    """
    write_durably(aside / folders.STATE_NAME, state.to_json())
    write_durably(aside / folders.PLAN_NAME, plan.to_json())
    write_durably(aside / folders.DS_CONFIG_NAME, json.dumps(ds_config, indent=2) + "\n")
    if tokenizer is not None:
        target = aside / ("tokenizer" if tokenizer.is_dir() else "tokenizer.model")
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, target, symlinks=True)  # files outside are not part of it
        else:
            shutil.copyfile(tokenizer, target)
        for path in files_below(target) if target.is_dir() else [target]:
            sync(path)


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and below, in order, without the manifest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != folders.MANIFEST_NAME)
