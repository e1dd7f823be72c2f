"""Checkpoints in DeepSpeed's own format, one folder per pipeline stage.

DeepSpeed names files by the model-parallel rank, which here is the tensor-parallel rank (see `distributed.mpu`), so two
pipeline stages would write the same files.
"""

from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import OutputError


def _stage_folder(folder: Path) -> Path:
    return folder / f"pp_rank_{parallel_state.get_pipeline_model_parallel_rank():02d}"


def _tag(iteration: int) -> str:
    return f"iter_{iteration:07d}"


def save(engine: TrainingEngine, *, folder: Path, iteration: int) -> Path:
    """Write weights and optimizer state of every rank, to be loaded under the same layout.

    Args:
        engine: The engine to save; every rank calls this.
        folder: Receives `pp_rank_XX/iter_XXXXXXX`.
        iteration: Optimizer steps taken.

    Returns:
        `folder`.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        _stage_folder(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write the checkpoint to {folder}: {error.strerror}") from None
    engine.engine.save_checkpoint(
        str(_stage_folder(folder)), tag=_tag(iteration), client_state={"iteration": iteration}
    )
    dist.barrier()
    return folder


def load(engine: TrainingEngine, *, folder: Path, iteration: int) -> int:
    """Read what `save` wrote, under the same layout; return the optimizer steps taken.

    Raises:
        OutputError: there is no such checkpoint.
    """
    if not (_stage_folder(folder) / _tag(iteration)).is_dir():
        raise OutputError(f"{_stage_folder(folder) / _tag(iteration)} is no checkpoint")
    _, state = engine.engine.load_checkpoint(str(_stage_folder(folder)), tag=_tag(iteration))
    return int(state["iteration"])
