"""Process groups: TP x PP x DP by megatron-core, over the process group that DeepSpeed starts."""

import os
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import initialize_rng_tracker

from chinchilla_ds.distributed import build_lock, cpu_backend, deepspeed_patches, zero_step
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.plan import ParallelLayout

_TIMEOUT = timedelta(minutes=30)


def initialize(*, layout: ParallelLayout) -> None:
    """Start the process group and cut it into the layout's tensor-, pipeline- and data-parallel groups.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as the deepspeed launcher sets them.

    Raises:
        LayoutError: the ranks cannot meet at that address, which another run may hold.
    """
    if cpu_backend.has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    cpu_backend.install()
    deepspeed_patches.install()
    zero_step.install()
    build_lock.install()
    backend = "nccl" if cpu_backend.has_cuda() else "gloo"
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=_TIMEOUT, verbose=False)
    except dist.DistNetworkError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LayoutError(
            f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT {place} ({str(error).splitlines()[0]}); if another run "
            "holds the port, choose a free one: deepspeed --master_port 29501 ..."
        ) from None
    virtual = layout.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
    )
    # The decoder has no dropout and its weights are drawn by model.initialization, so megatron's random regions, which
    # need CUDA and a seed, do nothing: this is megatron-core's own tracker for that.
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)


def shut_down() -> None:
    """Release every process group."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every rank has come here."""
    dist.barrier()


def data_parallel_rank() -> int:
    """Return which share of every global batch this rank reads."""
    return int(parallel_state.get_data_parallel_rank())


def owns_loss() -> bool:
    """Return whether this rank speaks for the run's loss: last stage, tensor- and data-parallel rank 0."""
    return bool(
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank() == 0
    )


def global_rank() -> int:
    """Return this rank's place among all."""
    return int(dist.get_rank())


def is_rank_zero() -> bool:
    """Return whether this is global rank 0, which reads and writes for all where it matters not which rank does."""
    return global_rank() == 0


def loss_owner_rank() -> int:
    """Return the global rank for which `owns_loss` holds: rank 0 of the last stage's groups."""
    return int(
        dist.get_world_size()
        - parallel_state.get_tensor_model_parallel_world_size() * parallel_state.get_data_parallel_world_size()
    )
