"""The rehearsal of a checkpoint before the first step: a few values of this rank's states, written and read back."""

from pathlib import Path

import torch
from torch import Tensor

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.tensors import Block, load_blocks, whole_block
from chinchilla_ds.engine.owned_states import OwnedState
from chinchilla_ds.errors import ChinchillaError
from chinchilla_ds.run_plan import RunPlan

FOLDER_NAME = ".rehearsal"
"""Name of the rehearsal in the folder of a run's checkpoints, while it lasts."""
_VALUES = 256


def precision_problems(states: list[OwnedState]) -> list[str]:
    """Return why the optimizer's states cannot be saved: a checkpoint holds FP32."""
    dtypes: dict[str, torch.dtype] = {}
    for owned in states:
        held = owned.optimizer.state.get(owned.key, {})
        dtypes |= {"master weights": owned.weight.dtype} | {
            f"states ({kind})": held[kind].dtype for kind in owned.spec.states if kind in held
        }
    return [
        f"the optimizer keeps its {what} in {str(dtype).removeprefix('torch.')}, and checkpoints hold FP32: remove "
        "the ds_config's keys for that, such as bf16_master_weights_and_grads or bf16_optimizer_states"
        for what, dtype in dtypes.items()
        if dtype != torch.float32
    ]


def sample_values(states: list[OwnedState]) -> dict[str, Tensor]:
    """Return the first values of the smallest state, by kind; none if this rank owns nothing."""
    if not states:
        return {}
    owned = min(states, key=lambda state: max((piece.flat_start + piece.numel for piece in state.pieces), default=0))
    is_new = not owned.optimizer.state.get(owned.key)
    with owned.resident():
        values = {kind: flat[:_VALUES].detach().cpu().clone() for kind, flat in owned.tensors().items()}
    if is_new:  # leave the optimizer unchanged
        owned.optimizer.state.pop(owned.key)
    return {kind: flat for kind, flat in values.items() if flat.numel()}


def sample_blocks(values: dict[str, Tensor], *, rank: int) -> list[Block]:
    """Return one block for each kind, under names unique to this rank."""
    return [whole_block(f"{kind}/rank{rank}", flat) for kind, flat in values.items()]


def read_back(checkpoint: Path, *, values: dict[str, Tensor], rank: int, plan: RunPlan) -> list[str]:
    """Return what this rank finds wrong with a checkpoint that was just written with its values.

    Args:
        checkpoint: the checkpoint that was just written.
        values: the values that this rank wrote, by kind.
        rank: this rank.
        plan: the run's plan.
    """
    try:
        if damaged := folders.problems_of(checkpoint):
            return damaged
        blocks = sample_blocks({kind: torch.empty_like(flat) for kind, flat in values.items()}, rank=rank)
        reader = CheckpointReader(checkpoint)
        with folders.reported_as(checkpoint):
            load_blocks(blocks, index=reader.index, folder=checkpoint / folders.TENSORS_NAME)
        is_same = reader.plan == plan
    except ChinchillaError as error:
        return list(error.problems)
    is_same = is_same and all(block.values.equal(values[block.key.partition("/")[0]]) for block in blocks)
    return [] if is_same else [f"{checkpoint} does not hold what was written into it"]
