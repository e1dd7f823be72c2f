"""Splits a token budget into optimizer steps and micro-batches."""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.hyperparameters import MIN_TRAIN_ITERS, choose_batch_tokens
from chinchilla_ds.run_plan import BatchPlan, ParallelLayout

BATCH_MULTIPLE = 16
"""Global batches are multiples of this, so that data-parallel sizes 1, 2, 4, 8 and 16 train on the same batches."""
LEAST_MULTIPLES = 2
"""Least number of multiples in a batch: rounding then changes it by at most a quarter, over which the loss is flat."""
MATCH = 0.001
"""Largest relative difference between the tokens of whole steps and those wanted, if a batch within a tenth has it."""
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 8192}
"""Largest micro-batch in tokens: enough to keep matmuls busy, few enough to keep activations small."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """The requirements of the batch."""

    wanted_tokens: float
    """Token budget D."""
    num_params: int
    """N, which the batch of long runs depends on."""
    seq_length: int
    global_batch_size: int | None
    """Sequences; None: `hyperparameters.choose_batch_tokens`."""
    micro_batch_size: int | None
    """Sequences; None: the largest within MICRO_BATCH_TOKENS."""
    device: str


def choose_batch(*, request: BatchRequest, layout: ParallelLayout) -> BatchPlan:
    """Return the batch; the caller has checked `layout_problems` and the divisibility of given sizes."""
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
    """Return the divisor of every valid global_batch_size: DP, times the micro-batch, times PP if interleaved."""
    interleaved = layout.virtual_pipeline_model_parallel_size > 1
    chunks = layout.pipeline_model_parallel_size if interleaved else 1
    return layout.data_parallel_size * (micro_batch_size or 1) * chunks


def cluster_batch_size(*, batch_tokens: float, wanted_tokens: float, seq_length: int, world_size: int) -> int:
    """Return the sequences per step for `world_size` ranks whose layout is still to be chosen.

    `batch_tokens`, rounded to a multiple of the number of ranks, or of a divisor of it, times a power of two, so that
    many data-parallel sizes and micro-batches divide it: the largest multiple that changes it by at most a quarter.

    Args:
        batch_tokens: the batch that the rules give.
        wanted_tokens: the token budget D.
        seq_length: tokens per sequence.
        world_size: number of ranks.
    """
    wanted = batch_tokens / seq_length
    ranks = math.lcm(BATCH_MULTIPLE, world_size)
    multiples = [divisor for divisor in range(1, ranks + 1) if ranks % divisor == 0]
    multiples += [ranks * 2**power for power in range(1, 20)]
    multiple = max(size for size in multiples if size <= max(1.0, wanted / LEAST_MULTIPLES))
    sequences = _with_enough_steps(wanted, multiple, wanted_tokens / seq_length)
    return _matching_tokens(sequences, multiple, wanted_tokens / seq_length)


def _global_batch_size(request: BatchRequest, layout: ParallelLayout) -> int:
    """Return the rules' batch, rounded to the nearest multiple that a layout can share."""
    unit = batch_unit(layout=layout, micro_batch_size=request.micro_batch_size)
    multiple = math.lcm(BATCH_MULTIPLE, unit)
    all_sequences = request.wanted_tokens / request.seq_length
    batch_tokens = choose_batch_tokens(num_params=request.num_params, num_tokens=request.wanted_tokens)
    wanted = batch_tokens / request.seq_length
    sequences = _with_enough_steps(wanted, multiple, all_sequences)
    if sequences < multiple:
        sequences, multiple = max(1, sequences // unit) * unit, unit
    return _matching_tokens(sequences, multiple, all_sequences)


def _with_enough_steps(wanted: float, multiple: int, all_sequences: float) -> int:
    """Return the multiple nearest to `wanted`, or a power of two if that leaves fewer than MIN_TRAIN_ITERS steps."""
    sequences = max(1, round(wanted / multiple)) * multiple
    most = all_sequences / MIN_TRAIN_ITERS
    if sequences <= most:
        return sequences
    return int(2 ** max(0, math.floor(math.log2(most)))) if most >= 1 else 1


def _matching_tokens(sequences: int, multiple: int, all_sequences: float) -> int:
    """Return the nearest multiple, within a tenth, whose whole steps match all sequences; otherwise the best."""
    nearby = range(-(sequences // multiple // 10), sequences // multiple // 10 + 1)
    sizes = sorted(
        {sequences, *(sequences + steps * multiple for steps in nearby)}, key=lambda size: abs(size - sequences)
    )

    def miss(size: int) -> float:
        return abs(round(all_sequences / size) * size / all_sequences - 1)

    return next((size for size in sizes if miss(size) <= MATCH), min(sizes, key=miss))


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
