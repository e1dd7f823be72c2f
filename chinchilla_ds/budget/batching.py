"""How a token budget is cut into optimizer steps and micro-batches."""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.hyperparameters import MIN_TRAIN_ITERS, step_law_batch_tokens
from chinchilla_ds.plan import BatchPlan, ParallelLayout

BATCH_MULTIPLE = 16
"""Global batches come in multiples of this, so that data-parallel sizes 1, 2, 4, 8 and 16 train on the same batches."""
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 8192}
"""Most tokens of one micro-batch: enough to keep matmuls busy, few enough to keep activations small."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What the batch has to meet."""

    wanted_tokens: float
    """Token budget D."""
    seq_length: int
    global_batch_size: int | None
    """Sequences; None lets Step Law choose."""
    micro_batch_size: int | None
    """Sequences; None takes the largest within MICRO_BATCH_TOKENS."""
    device: str


def choose_batch(*, request: BatchRequest, layout: ParallelLayout) -> BatchPlan:
    """Return the batch; `layout_problems` and the divisibility of given sizes have been checked before."""
    global_batch_size = request.global_batch_size or _global_batch_size(request, layout)
    per_rank = global_batch_size // layout.data_parallel_size
    micro_batch_size = request.micro_batch_size or _micro_batch_size(request, layout, per_rank)
    tokens_per_iter = global_batch_size * request.seq_length
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=per_rank // micro_batch_size,
        train_iters=round(request.wanted_tokens / tokens_per_iter),
    )


def batch_unit(*, layout: ParallelLayout, micro_batch_size: int | None) -> int:
    """Return what global_batch_size must be a multiple of: DP, times the micro-batch, times PP when interleaved."""
    interleaved = layout.virtual_pipeline_model_parallel_size > 1
    chunks = layout.pipeline_model_parallel_size if interleaved else 1
    return layout.data_parallel_size * (micro_batch_size or 1) * chunks


def _global_batch_size(request: BatchRequest, layout: ParallelLayout) -> int:
    """Return Step Law's batch to the nearest multiple, or less where that leaves fewer than MIN_TRAIN_ITERS steps."""
    unit = batch_unit(layout=layout, micro_batch_size=request.micro_batch_size)
    multiple = math.lcm(BATCH_MULTIPLE, unit)
    wanted = step_law_batch_tokens(num_tokens=request.wanted_tokens) / request.seq_length
    sequences = max(1, round(wanted / multiple)) * multiple
    most = request.wanted_tokens / request.seq_length / MIN_TRAIN_ITERS
    if sequences <= most:
        return sequences
    power_of_two = 2 ** max(0, math.floor(math.log2(most))) if most >= 1 else 1
    return max(1, power_of_two // unit) * unit


def _micro_batch_size(request: BatchRequest, layout: ParallelLayout, per_rank: int) -> int:
    """Return the largest micro-batch that keeps every pipeline stage busy and stays within MICRO_BATCH_TOKENS."""
    most = max(1, MICRO_BATCH_TOKENS[request.device] // request.seq_length)
    pipeline = layout.pipeline_model_parallel_size
    interleaved = layout.virtual_pipeline_model_parallel_size > 1
    fits = [
        size
        for size in range(1, min(most, per_rank) + 1)
        if per_rank % size == 0 and per_rank // size >= pipeline and not (interleaved and (per_rank // size) % pipeline)
    ]
    return fits[-1] if fits else 1
