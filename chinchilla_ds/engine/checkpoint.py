"""Checkpoints in DeepSpeed's own format, one folder per pipeline stage.

DeepSpeed names files by the model-parallel rank, which here is the tensor-parallel rank (see `distributed.mpu`), so two
pipeline stages would write the same files.
"""

from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import DataError, OutputError


def _stage_folder(folder: Path) -> Path:
    return folder / f"pp_rank_{parallel_state.get_pipeline_model_parallel_rank():02d}"


def _tag(iteration: int) -> str:
    return f"iter_{iteration:07d}"


def save(engine: TrainingEngine, *, folder: Path, iteration: int, tokenizer_sha256: str | None = None) -> Path:
    """Write weights and optimizer state of every rank, to be loaded under the same layout.

    Args:
        engine: The engine to save; every rank calls this.
        folder: Receives `pp_rank_XX/iter_XXXXXXX`.
        iteration: Optimizer steps taken.
        tokenizer_sha256: Hash of the tokenizer that made the training data.

    Returns:
        `folder`.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        _stage_folder(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write the checkpoint to {folder}: {error.strerror}") from None
    state = {"iteration": iteration, "tokenizer_sha256": tokenizer_sha256}
    engine.engine.save_checkpoint(str(_stage_folder(folder)), tag=_tag(iteration), client_state=state)
    dist.barrier()
    return folder


def load(engine: TrainingEngine, *, folder: Path, iteration: int, tokenizer_sha256: str | None = None) -> int:
    """Read what `save` wrote, under the same layout; return the optimizer steps taken.

    Args:
        engine: Receives weights and optimizer state; every rank calls this.
        folder: What `save` returned.
        iteration: Optimizer steps that had been taken.
        tokenizer_sha256: Hash of the tokenizer of the data to go on with; None where no data is read.

    Raises:
        OutputError: there is no such checkpoint.
        DataError: it was trained with another tokenizer.
    """
    if not (_stage_folder(folder) / _tag(iteration)).is_dir():
        raise OutputError(f"{_stage_folder(folder) / _tag(iteration)} is no checkpoint")
    _, state = engine.engine.load_checkpoint(str(_stage_folder(folder)), tag=_tag(iteration))
    known = state["tokenizer_sha256"]
    if None not in (known, tokenizer_sha256) and known != tokenizer_sha256:
        raise DataError(
            f"the checkpoint {folder} was trained with tokenizer {known} and the data was made with {tokenizer_sha256};"
            " prepare the data with the checkpoint's tokenizer"
        )
    return int(state["iteration"])
