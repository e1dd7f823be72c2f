"""DeepSpeed's universal checkpoint format, written from one of ours, for other programs on DeepSpeed.

    OUT/latest_universal                                names the tag
    OUT/TAG/zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt one folder per parameter
    OUT/TAG/zero/optimizer_state.pt                     AdamW's settings and count of steps
    OUT/TAG/*_model_states.pt                           counters; weights are read from zero/

This is what DeepSpeed 0.19.8 reads with `"checkpoint": {"load_universal": true}` (load_hp_checkpoint_state in
deepspeed/checkpoint/universal_checkpoint.py and runtime/zero/stage3.py). Its own converter, ds_to_universal, writes the
same from a checkpoint of DeepSpeed's. It reads a whole parameter into memory, and so does this.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.files import sync
from chinchilla_ds.objective import is_own
from chinchilla_ds.run_plan import ADAM_STATES
from chinchilla_ds.weights import kind_of

_MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""Names of the counters' file: of ZeRO 0 to 2, and of ZeRO-3."""
_DS_VERSION = "0.19.8"
"""The version of this format, for checkpoints that do not record which version wrote them."""


def write_universal(reader: CheckpointReader, *, out: Path) -> int:
    """Write a checkpoint in DeepSpeed's universal format; one tensor is in memory at a time.

    Args:
        reader: The checkpoint; it must have AdamW's moments.
        out: A folder that exists and is empty.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: it has an objective's own weights, and how tensor parallelism cuts those is unknown.
    """
    if own := [name for name in reader.names() if is_own(name)]:
        raise CheckpointError(
            f"{reader.folder} holds {len(own)} weights of its objective {reader.plan.objective}, such as {own[0]}: the "
            "universal format cannot carry them, since it must record how ranks cut each weight"
        )
    tag = reader.folder.name
    zero = out / tag / "zero"
    zero.mkdir(parents=True)
    for name in reader.names():
        folder = zero / name
        folder.mkdir()
        for key, state in (("fp32", None), *((state, state) for state in ADAM_STATES)):
            _save(_parameter(name, reader.read(name, state=state)), folder / f"{key}.pt")
        _save(_step(reader), folder / "step.pt")
    _save(_optimizer_state(reader), zero / "optimizer_state.pt")
    for name in _MODEL_STATES:
        _save(_counters(reader), out / tag / name)
    (out / "latest_universal").write_text(tag, encoding="utf-8")
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _parameter(name: str, values: Tensor) -> dict[str, Any]:
    kind = kind_of(name)
    split = None if kind is None else kind.split
    return {"param": values} if split is None else {"param": values, "cat_dim": split.dim}


def _step(reader: CheckpointReader) -> Tensor:
    """Return AdamW's count in the form that torch's AdamW keeps; DeepSpeed's CPU kernel takes it too."""
    return torch.tensor(float(reader.state.optimizer_step))


def _optimizer_state(reader: CheckpointReader) -> dict[str, Any]:
    """Return AdamW's settings, in the places where ZeRO 1 and 2, and ZeRO-3, expect them.

    One entry for each parameter group of the program that reads it, at most two: with and without weight decay. That
    program knows which is which, so neither decay nor learning rate are among them.
    """
    settings = reader.plan.optimizer
    group = {"betas": (settings.beta1, settings.beta2), "eps": settings.epsilon}
    groups = [group, group]
    return {
        "ds_version": reader.state.versions.get("deepspeed", _DS_VERSION),
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {"step": _step(reader)}}, "param_groups": groups},
    }


def _counters(reader: CheckpointReader) -> dict[str, Any]:
    state = reader.state
    return {
        "module": {},
        "global_steps": state.attempts,
        "skipped_steps": state.attempts - state.iteration,
        "global_samples": state.attempts * reader.plan.batch.global_batch_size,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "lr_scheduler": None,
        "optimizer": None,
        "ds_version": state.versions.get("deepspeed", _DS_VERSION),
        "chinchilla_ds_plan": reader.plan.to_json(),
    }


def _save(value: Any, path: Path) -> None:
    with path.open("wb") as stream:
        torch.save(value, stream)
    sync(path)
