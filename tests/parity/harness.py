"""Train one plan twice, from the same weights on the same data: on the ranks of its layout, and by the reference.

What the tests and `tests.parity.report` share. Data: tokens of a skewed distribution, so that a few steps lower the
loss by more than chance. AdamW's epsilon is large (1e-3, about a gradient's size): updates then depend on the scale of
the gradients, which clipping and accumulation change, and rounding noise in gradients near zero is not blown up.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.data.feeding.loader import TokenBatch
from chinchilla_ds.objective import Objective
from chinchilla_ds.run_plan import ParallelLayout, RunPlan
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.reference_llama import ReferenceLlama, to_megatron_state, train_reference

T = TypeVar("T")

TIMEOUT_S = 150.0
"""For one run on up to four ranks that takes 2 to 5 s on two quiet cores."""
EOD_ID = 1
"""Ends a document where a plan masks documents: about one token in 24 of `micro_batches`."""
HELD_OUT_STEP = 10_000
"""Step number of the batch that is evaluated after training."""
ACTIVE_CLIPPING = 0.25
"""Below the norm of every step of `parity_plan`."""
INACTIVE_CLIPPING = 100.0
"""Above the norm of every step of `parity_plan`."""
_DEFAULTS = {"learning_rate": 4e-3, "weight_decay": 0.5}


def parity_plan(
    *,
    tied_embeddings: bool = False,
    qk_norm: bool = False,
    num_layers: int = 4,
    gradient_clipping: float = ACTIVE_CLIPPING,
    **values: Any,
) -> RunPlan:
    """Return a tiny plan whose layout the planner accepts; `values` are arguments of `tiny_plan`."""
    shape = tiny_shape(tied_embeddings=tied_embeddings, qk_norm=qk_norm, num_layers=num_layers)
    plan = tiny_plan(shape=shape, gradient_clipping=gradient_clipping, **{**_DEFAULTS, **values})
    validate_layout(shape=plan.shape, layout=plan.layout, precision=plan.precision, batch=plan.batch)
    return dataclasses.replace(plan, optimizer=dataclasses.replace(plan.optimizer, epsilon=1e-3))


def deepspeed_json(plan: RunPlan, **extra: Any) -> dict[str, Any]:
    """Return the JSON that the planner emits, with buckets that a tiny model fills and nothing kept unpartitioned."""
    ds: dict[str, Any] = ds_config.emit(plan)
    zero = ds["zero_optimization"]
    if plan.layout.zero_stage:
        zero["reduce_bucket_size"] = 20_000  # elements; the largest weight has 16,384
    if plan.layout.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 20_000}
    for section in ("offload_optimizer", "offload_param"):
        if section in zero:
            zero[section]["pin_memory"] = False
    return ds | extra


def learning_rate(plan: RunPlan, step: int) -> float:
    """Return a rate that differs from step to step."""
    return plan.optimizer.learning_rate * (1 - 0.1 * step)


def micro_batches(plan: RunPlan, step: int) -> list[TokenBatch]:
    """Return the micro-batches of one step, those of all data-parallel ranks together; of b = 2 sequences each."""
    shape, batch = plan.shape, plan.batch
    generator = torch.Generator().manual_seed(step)
    skewed = torch.rand(batch.global_batch_size, shape.seq_length + 1, generator=generator) ** 3
    text = (skewed * shape.vocab_size).long()
    return [
        TokenBatch(tokens=part[:, :-1].contiguous(), labels=part[:, 1:].contiguous())
        for part in text.split(batch.micro_batch_size)
    ]


def micro_batches_of_rank(plan: RunPlan, step: int, data_parallel_rank: int) -> list[TokenBatch]:
    """Return the share of one data-parallel rank."""
    return micro_batches(plan, step)[data_parallel_rank :: plan.layout.data_parallel_size]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What a training run shows to the outside."""

    losses: list[float]
    grad_norms: list[float]
    """Before clipping."""
    evaluation: float
    """Loss of a held-out batch after the last step."""
    weights: dict[str, Tensor]
    """Full weights after the last step, in fp32, under Megatron's names."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on matrices this small, and beside other processes, a second one spins and waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- the truth ------------------------------------------------------------------------------------------------------


def initial_weights(plan: RunPlan) -> dict[str, Tensor]:
    """Return the full initial weights, drawn by name and full shape."""
    from chinchilla_ds.model.initialization import initial_weight

    shapes = to_megatron_state(ReferenceLlama(plan.shape))
    return {name: initial_weight(name=name, shape=list(like.shape), plan=plan) for name, like in shapes.items()}


def reference(plan: RunPlan, *, learning_rates: tuple[float, ...] | None = None) -> Trajectory:
    """Return the trajectory of the plain PyTorch reference, in this process, in fp32; the layout plays no part.

    Args:
        plan: The plan to train.
        learning_rates: Of every step; None for those of `learning_rate`.
    """
    parts = plan.batch.gradient_accumulation_steps * plan.layout.data_parallel_size
    batch = dataclasses.replace(plan.batch, gradient_accumulation_steps=parts)
    rates = learning_rates or tuple(learning_rate(plan, step) for step in _steps(plan))
    with one_thread():
        return _reference(dataclasses.replace(plan, layout=ParallelLayout(), batch=batch), rates)


@functools.cache
def _reference(plan: RunPlan, learning_rates: tuple[float, ...]) -> Trajectory:
    steps = [[(part.tokens, part.labels) for part in micro_batches(plan, step)] for step in _steps(plan)]
    results, model = train_reference(
        initial_weights(plan), steps, plan, learning_rate=lambda step: learning_rates[step]
    )
    with torch.no_grad():
        held_out = [float(model.loss(part.tokens, part.labels)) for part in micro_batches(plan, HELD_OUT_STEP)]
    return Trajectory(
        losses=[loss for loss, _ in results],
        grad_norms=[norm for _, norm in results],
        evaluation=sum(held_out) / len(held_out),
        weights=to_megatron_state(model),
    )


def _steps(plan: RunPlan) -> Iterable[int]:
    return range(plan.batch.train_iters)


# ---- our engine, on ranks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one rank holds of one weight, ZeRO-3's partitions gathered."""

    value: Tensor
    partition_dim: int | None
    """Dimension that tensor parallelism cuts; None where every tensor-parallel rank holds all of it."""


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """What one rank sends home."""

    tensor_rank: int
    losses: list[float]
    grad_norms: list[float]
    evaluation: float
    shards: dict[str, Shard]


def on_engine(
    plan: RunPlan,
    body: Callable[..., T],
    *args: Any,
    prepare: Callable[[], None] | None = None,
    objective: Objective | None = None,
    timeout_s: float = TIMEOUT_S,
    **extra: Any,
) -> list[T]:
    """Return `[body(engine, *args) on rank 0, ...]`, on as many ranks as the plan's layout has.

    Args:
        plan: The plan that the engine is built for.
        body: Called with a fresh TrainingEngine; may be a closure.
        *args: Passed to `body`.
        prepare: Called on every rank before anything is built.
        objective: What makes the loss; None: what the plan names.
        timeout_s: For the whole run.
        **extra: Top-level keys that replace those of the DeepSpeed JSON.
    """

    def run() -> T:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if prepare is not None:
            prepare()
        from chinchilla_ds.distributed import groups
        from chinchilla_ds.engine.zero import TrainingEngine

        groups.initialize(layout=plan.layout)
        ds = deepspeed_json(plan, **extra)
        return body(TrainingEngine(plan=plan, ds_config=ds, eod_id=EOD_ID, objective=objective), *args)

    return run_on_ranks(run, plan.layout.world_size, timeout_s=timeout_s)


def own_micro_batches(plan: RunPlan, step: int) -> list[TokenBatch]:
    """Return this rank's micro-batches."""
    from chinchilla_ds.distributed import groups

    return micro_batches_of_rank(plan, step, groups.data_parallel_rank())


def train(engine: Any) -> RankResult:
    """Take the plan's steps and evaluate; a body for `on_engine`."""
    from megatron.core import parallel_state

    plan = engine.plan
    results = [
        engine.train_step(own_micro_batches(plan, step), learning_rate=learning_rate(plan, step))
        for step in _steps(plan)
    ]
    return RankResult(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        losses=[result.loss for result in results],
        grad_norms=[result.grad_norm for result in results],
        evaluation=engine.evaluate(own_micro_batches(plan, HELD_OUT_STEP)),
        shards=shards_of(engine.stage),
    )


def shards_of(stage: Any) -> dict[str, Shard]:
    """Return this rank's weights by global name; every rank of a stage calls this."""
    import deepspeed

    from chinchilla_ds.model.initialization import global_named_parameters

    shards = {}
    for name, parameter in global_named_parameters(stage):
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            value = parameter.detach().float().cpu().clone()
        cut = getattr(parameter, "tensor_model_parallel", False)
        shards[name] = Shard(value=value, partition_dim=parameter.partition_dim if cut else None)
    return shards


def trajectory(results: list[RankResult]) -> Trajectory:
    """Join what the ranks sent home; every one of them must tell the same."""
    first = results[0]
    for result in results[1:]:
        assert (result.losses, result.grad_norms) == (first.losses, first.grad_norms), "ranks report different steps"
        assert result.evaluation == first.evaluation, "ranks report different evaluations"
    return Trajectory(
        losses=first.losses,
        grad_norms=first.grad_norms,
        evaluation=first.evaluation,
        weights=full_weights([(result.tensor_rank, result.shards) for result in results]),
    )


def full_weights(ranks: list[tuple[int, dict[str, Shard]]]) -> dict[str, Tensor]:
    """Join the shards of all ranks; replicas must be equal, bit by bit."""
    parts: dict[str, dict[int, Shard]] = {}
    for tensor_rank, shards in ranks:
        for name, shard in shards.items():
            key = 0 if shard.partition_dim is None else tensor_rank
            known = parts.setdefault(name, {}).setdefault(key, shard)
            assert torch.equal(known.value, shard.value), f"replicas of {name} differ"
    return {name: _join(name, [shard for _, shard in sorted(by_rank.items())]) for name, by_rank in parts.items()}


def _join(name: str, shards: list[Shard]) -> Tensor:
    dim = shards[0].partition_dim
    if dim is None:
        return shards[0].value
    if name.endswith("linear_fc1.weight"):  # each rank holds [gate; up] of its own
        halves = [shard.value.chunk(2, dim) for shard in shards]
        return torch.cat([half[part] for part in (0, 1) for half in halves], dim)
    return torch.cat([shard.value for shard in shards], dim)


def trained(plan: RunPlan, **extra: Any) -> Trajectory:
    """Train the plan on the ranks of its layout."""
    return trajectory(on_engine(plan, train, **extra))


# ---- how far apart --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest relative differences between two trajectories of one plan."""

    loss: float
    """Over training steps and the evaluation."""
    grad_norm: float
    weights: float
    """Over all weights: L2 norm of the difference, relative to the change that training made to that weight."""


def difference(ours: Trajectory, truth: Trajectory, plan: RunPlan) -> Difference:
    """Compare two trajectories that started from the plan's initial weights."""
    start = initial_weights(plan)
    assert ours.weights.keys() == truth.weights.keys() == start.keys()
    assert len(ours.losses) == len(truth.losses) == plan.batch.train_iters
    return Difference(
        loss=largest_relative([*ours.losses, ours.evaluation], [*truth.losses, truth.evaluation]),
        grad_norm=largest_relative(ours.grad_norms, truth.grad_norms),
        weights=max(
            float((ours.weights[name] - value).norm() / (value - start[name]).norm())
            for name, value in truth.weights.items()
        ),
    )


def largest_relative(ours: list[float], truth: list[float]) -> float:
    """Return max |a - b| / |b|; infinite where anything is not a number."""
    apart = [abs(a - b) / abs(b) for a, b in zip(ours, truth, strict=True)]
    return max(apart) if all(map(math.isfinite, apart)) else math.inf
