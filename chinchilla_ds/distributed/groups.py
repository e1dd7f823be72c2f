"""Process groups: TP x PP x DP by megatron-core, over the process group that DeepSpeed starts."""

import os
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import initialize_rng_tracker

from chinchilla_ds.distributed import build_lock, cpu_backend, deepspeed_patches, zero_step
from chinchilla_ds.distributed.launch import Place, read_place
from chinchilla_ds.distributed.rendezvous import Store, open_store
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.run_plan import ParallelLayout

_TIMEOUT = timedelta(days=1)
"""Timeout of a collective. Watchdogs report hangs sooner, and know what may take long, such as a large checkpoint."""


def initialize(*, layout: ParallelLayout, store: Store | None = None) -> None:
    """Start the process group and split it into the layout's tensor-, pipeline- and data-parallel groups.

    One that a script of the user's has started already is taken as it is, on the GPU that the script has chosen.
    Otherwise reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR and MASTER_PORT, as set by `launch.settle`.

    Args:
        layout: The parallel layout.
        store: Where the ranks have met; None: they meet now, by `rendezvous.open_store`.

    Raises:
        LayoutError: the ranks cannot meet at that address, which another run may use, or two would share a GPU.
    """
    if not dist.is_initialized():
        _start(store)
    cpu_backend.install()
    deepspeed_patches.install()
    zero_step.install()
    build_lock.install()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), timeout=_TIMEOUT, verbose=False)
    virtual = layout.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
    )
    # The decoder has no dropout and its weights are drawn by model.initialization, so megatron's random regions, which
    # need CUDA and a seed, are no-ops: megatron-core has its own tracker for that.
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)


def _start(store: Store | None) -> None:
    """Start the process group, before DeepSpeed, which would open a store on all interfaces; it takes this one."""
    place = read_place()
    store = store or open_store(place)
    cuda = cpu_backend.has_cuda()
    if cuda:
        _take_gpu(place, store=store)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=_TIMEOUT,
        device_id=cpu_backend.device() if cuda and place.world_size > 1 else None,
    )


def _take_gpu(place: Place, *, store: Store) -> None:
    """Make this rank's GPU the current one, and set LOCAL_RANK, by which DeepSpeed chooses, to it.

    Raises:
        LayoutError: there are fewer GPUs than ranks on this machine.
    """
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 else place.local_rank  # a launcher may make only one GPU visible to each task
    advice = "start one rank per GPU, or show each rank its own (srun --gpus-per-task=1)"
    if index >= visible:
        raise LayoutError(
            f"rank {place.rank} is one of {place.local_size} on its machine, which shows it {visible} GPUs: {advice}"
        )
    torch.cuda.set_device(index)
    os.environ["LOCAL_RANK"] = str(index)
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    other = int(store.compare_set(f"gpu/{uuid}", "", str(place.rank)))
    if other != place.rank:
        raise LayoutError(f"ranks {other} and {place.rank} would share GPU {uuid}: {advice}")


def shut_down() -> None:
    """Release every process group."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every rank has reached this point."""
    dist.barrier()


def data_parallel_rank() -> int:
    """Return the data-parallel rank: the share of every global batch that this rank reads."""
    return int(parallel_state.get_data_parallel_rank())


def owns_loss() -> bool:
    """Return whether this rank reports the run's loss: last stage, tensor- and data-parallel rank 0."""
    return bool(
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank() == 0
    )


def global_rank() -> int:
    """Return this rank's index among all ranks."""
    return int(dist.get_rank())


def is_rank_zero() -> bool:
    """Return whether this is global rank 0, which reads and writes for all if any rank could."""
    return global_rank() == 0


def loss_owner_rank() -> int:
    """Return the global rank for which `owns_loss` holds: rank 0 of the last stage's groups."""
    return int(
        dist.get_world_size()
        - parallel_state.get_tensor_model_parallel_world_size() * parallel_state.get_data_parallel_world_size()
    )
