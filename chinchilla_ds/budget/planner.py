"""From the user's configuration to a plan: model, batch, optimizer, layout. Pure and deterministic."""

import dataclasses
from collections.abc import Iterator

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.batching import BatchRequest, batch_unit, choose_batch
from chinchilla_ds.budget.checks import config_problems
from chinchilla_ds.budget.layout.rules import batch_problems, layout_problems, shape_problems, world_size_problems
from chinchilla_ds.budget.memory.peak import estimate_memory
from chinchilla_ds.budget.objective_cost import objective_bytes, pay_for_objective, with_objective_bytes
from chinchilla_ds.budget.optimizer import choose_optimizer
from chinchilla_ds.budget.prediction import predict
from chinchilla_ds.budget.report import plan_reasons
from chinchilla_ds.budget.shape.choice import ModelChoice, choose_model, nominal_budget
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ChinchillaError, ConfigError, LayoutError, PlanError
from chinchilla_ds.objective import make_objective
from chinchilla_ds.optimizers import find_optimizer
from chinchilla_ds.run_plan import (
    BatchPlan,
    Decay,
    ModelShape,
    ParallelLayout,
    Precision,
    RunPlan,
    Schedule,
)
from chinchilla_ds.units import format_count, format_flops

MIN_ITERS_OF_A_PLAN = 50
"""Fewer optimizer steps cannot spend every budget to within a hundredth, and hardly train a model."""
EVALUATIONS_PER_RUN = 10
SMALLEST_BUDGET_TRIED, LARGEST_BUDGET_TRIED = 1e7, 1e27


def plan(config: RunConfig, *, world_size: int, device: str) -> RunPlan:
    """Resolve a run on the layout that `config` names.

    The shape and the tokens do not depend on the layout; nor does the batch, if the layout's sizes divide it.

    Args:
        config: the user's configuration.
        world_size: number of ranks.
        device: "cpu" or "cuda"; decides the default precision and the micro-batch.

    Raises:
        ConfigError: invalid values, an unknown law or shape, a batch that the ranks cannot share.
        LayoutError: the layout cannot be built.
        PlanError: the budget is too small, or too large, for any model.
    """
    try:
        return _resolve(config, world_size=world_size, device=device)
    except PlanError as error:
        works = _what_works(config, world_size=world_size, device=device)
        raise PlanError([f"{problem}{works}" for problem in error.problems]) from None


def assemble(
    config: RunConfig, *, choice: ModelChoice, layout: ParallelLayout, batch: BatchPlan, device: str
) -> RunPlan:
    """Return the plan for a checked model, layout and batch.

    Args:
        config: the user's configuration.
        choice: the model and the wanted tokens.
        layout: the parallel layout.
        batch: the batch.
        device: kind of device, "cpu" or "cuda".
    """
    shape = choice.shape
    num_params = count_parameters(shape=shape).total
    flops_per_token = decoder_flops_per_token(shape=shape) + choice.objective_flops_per_token
    num_tokens = batch.train_iters * batch.global_batch_size * shape.seq_length
    optimizer, rate_reason = choose_optimizer(
        config, shape=shape, num_tokens=num_tokens, batch_tokens=batch.global_batch_size * shape.seq_length
    )
    precision = precision_of(config, device=device)
    memory = estimate_memory(
        shape=shape,
        layout=layout,
        batch=batch,
        precision=precision,
        device=device,
        optimizer_states=len(optimizer.states),
    )
    objective_memory = objective_bytes(make_objective(config.objective), shape=shape, batch=batch, layout=layout)
    unique_tokens = choice.laws.losses.unique_tokens
    made = RunPlan(
        compute_budget_flops=float(choice.compute_budget_flops),
        num_params=num_params,
        num_tokens=num_tokens,
        true_flops=flops_per_token * num_tokens,
        flops_per_token=flops_per_token,
        shape=shape,
        batch=batch,
        layout=layout,
        device=device,
        precision=precision,
        optimizer=optimizer,
        schedule=_schedule(config, batch=batch, shape=shape, peak=optimizer.learning_rate),
        prediction=predict(choice, num_tokens=num_tokens),
        seed=config.seed,
        eval_interval_iters=_eval_interval_iters(config, batch=batch, seq_length=shape.seq_length),
        document_mask=config.document_mask,
        callbacks=config.callbacks,
        objective=config.objective,
        objective_flops_per_token=choice.objective_flops_per_token,
        unique_tokens=None if unique_tokens is None else int(unique_tokens),
        memory_bytes=with_objective_bytes(memory, objective_memory),
    )
    reasons = plan_reasons(config, choice=choice, made=made, rate_reason=rate_reason)
    return dataclasses.replace(made, reasons=tuple(reasons))


def precision_of(config: RunConfig, *, device: str) -> Precision:
    """Return the requested precision, otherwise BF16 on a GPU and FP32 on a CPU."""
    return config.precision or (Precision.BF16 if device == "cuda" else Precision.FP32)


def smallest_budget(config: RunConfig, *, world_size: int, device: str) -> float | None:
    """Return approximately the smallest budget in FLOPs for which `config` has a plan; None if there is none.

    Only approximately, because shapes are discrete: smaller budgets between those tried may also have a plan.

    Args:
        config: the user's configuration; its budget is ignored.
        world_size: number of ranks.
        device: kind of device, "cpu" or "cuda".
    """

    def works_from(budget: float, factor: float) -> float | None:
        while budget < LARGEST_BUDGET_TRIED:
            rounded = float(f"{budget:.1e}")
            if _has_plan(dataclasses.replace(config, compute_budget_flops=rounded), world_size, device):
                return rounded
            budget *= factor
        return None

    rough = works_from(SMALLEST_BUDGET_TRIED, 10)
    return None if rough is None else works_from(rough / 10, 1.1)


def _has_plan(config: RunConfig, world_size: int, device: str) -> bool:
    try:
        _resolve(config, world_size=world_size, device=device)
    except ChinchillaError:
        return False
    return True


def _resolve(config: RunConfig, *, world_size: int, device: str) -> RunPlan:
    layout = check_and_lay_out(config, world_size=world_size, device=device)
    choice = pay_for_objective(choose_model(config), objective=make_objective(config.objective), config=config)
    batch = _choose_batch(config, choice=choice, layout=layout, device=device)
    if problems := [*shape_problems(shape=choice.shape, layout=layout), *batch_problems(batch=batch, layout=layout)]:
        raise LayoutError(problems)
    return assemble(config, choice=choice, layout=layout, batch=batch, device=device)


def check_and_lay_out(config: RunConfig, *, world_size: int, device: str) -> ParallelLayout:
    """Return the layout, after all checks that need no shape.

    Args:
        config: the user's configuration.
        world_size: number of ranks.
        device: kind of device, "cpu" or "cuda".
    """
    if values := list(config_problems(config, world_size=world_size, device=device)):
        raise ConfigError(values)
    wanted = config.layout
    tensor, pipeline = wanted.tensor_model_parallel_size, wanted.pipeline_model_parallel_size
    data = max(1, world_size // (tensor * pipeline))
    layout = ParallelLayout(data_parallel_size=data, **vars(wanted))
    broken = [*world_size_problems(world_size=world_size, tensor=tensor, pipeline=pipeline)]
    broken += layout_problems(
        layout=layout, precision=precision_of(config, device=device), optimizer=find_optimizer(config.optimizer)
    )
    if broken:
        raise LayoutError(broken)
    if sizes := list(_given_batch_problems(config, layout)):
        raise ConfigError(sizes)
    return layout


def _given_batch_problems(config: RunConfig, layout: ParallelLayout) -> Iterator[str]:
    """Yield why the ranks cannot share the batch that the user set."""
    size = config.global_batch_size
    if size is None:
        return
    unit = batch_unit(layout=layout, micro_batch_size=config.micro_batch_size)
    if size % unit == 0:
        return
    below = size // unit * unit
    near = f"{below} and {below + unit}" if below else str(unit)
    factors = f"data_parallel_size ({layout.data_parallel_size})"
    if config.micro_batch_size is not None:
        factors = f"`micro_batch_size` ({config.micro_batch_size}) x {factors}"
    if layout.virtual_pipeline_model_parallel_size > 1:
        factors += f" x `layout.pipeline_model_parallel_size` ({layout.pipeline_model_parallel_size})"
    yield f"`global_batch_size` ({size} sequences) must be a multiple of {factors} = {unit}; nearest values: {near}"


def _choose_batch(config: RunConfig, *, choice: ModelChoice, layout: ParallelLayout, device: str) -> BatchPlan:
    """Return the batch whose steps spend the wanted tokens.

    Raises:
        ConfigError: the batch that the user set leaves too few steps.
        PlanError: even the smallest batch leaves too few steps.
    """
    seq_length = choice.shape.seq_length
    request = BatchRequest(
        wanted_tokens=choice.wanted_tokens,
        num_params=count_parameters(shape=choice.shape).total,
        seq_length=seq_length,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        device=device,
    )
    batch = choose_batch(request=request, layout=layout)
    if batch.train_iters >= MIN_ITERS_OF_A_PLAN:
        return batch
    problem = (
        f"{format_flops(choice.compute_budget_flops)} train on {format_count(choice.wanted_tokens)} tokens, which is "
        f"{batch.train_iters} optimizer steps of {batch.global_batch_size} sequences x {seq_length} tokens; a plan "
        f"needs at least {MIN_ITERS_OF_A_PLAN}"
    )
    sequences = int(choice.wanted_tokens / seq_length / (MIN_ITERS_OF_A_PLAN + 1))
    unit = batch_unit(layout=layout, micro_batch_size=config.micro_batch_size)
    if config.global_batch_size is not None and sequences >= unit:
        nearest = sequences // unit * unit
        raise ConfigError(f"`global_batch_size` is too large: {problem}; nearest value: {nearest} sequences")
    if config.micro_batch_size is not None and sequences >= unit // config.micro_batch_size:
        nearest = sequences // (unit // config.micro_batch_size)
        raise ConfigError(f"`micro_batch_size` is too large: {problem}; nearest value: {nearest} sequences")
    raise PlanError(problem)


def _schedule(config: RunConfig, *, batch: BatchPlan, shape: ModelShape, peak: float) -> Schedule:
    """Return the schedule, exactly as long as the run: a cosine cycle that is too long increases the loss.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), figure A1.

    Raises:
        ConfigError: the requested warm-up is as long as the run.
    """
    warmup_iters = config.warmup_iters
    if warmup_iters is None:
        warmup_iters = hyperparameters.choose_warmup_iters(
            num_params=count_parameters(shape=shape).total,
            tokens_per_iter=batch.global_batch_size * shape.seq_length,
            train_iters=batch.train_iters,
        )
    after_warmup = batch.train_iters - warmup_iters
    if after_warmup < 1:
        raise ConfigError(
            f"`warmup_iters` ({warmup_iters} steps) must be below the run's {batch.train_iters} optimizer steps; "
            f"nearest: {batch.train_iters - 1}"
        )
    wsd_iters = max(1, round(hyperparameters.WSD_DECAY_FRACTION * batch.train_iters))
    return Schedule(
        decay=config.decay,
        warmup_iters=warmup_iters,
        decay_iters=after_warmup if config.decay is Decay.COSINE else min(wsd_iters, after_warmup),
        min_learning_rate=hyperparameters.MIN_LEARNING_RATE_FRACTION * peak,
    )


def _eval_interval_iters(config: RunConfig, *, batch: BatchPlan, seq_length: int) -> int:
    if config.eval_interval_tokens is None:
        return max(1, batch.train_iters // EVALUATIONS_PER_RUN)
    return max(1, round(config.eval_interval_tokens / (batch.global_batch_size * seq_length)))


def _what_works(config: RunConfig, *, world_size: int, device: str) -> str:
    """Return a hint for an error about the budget; empty if no budget was requested."""
    if config.compute_budget_flops is None and (config.num_params or config.shape or config.num_tokens):
        return ""
    asked = nominal_budget(config)
    least = smallest_budget(config, world_size=world_size, device=device)
    if least is None:
        return f"; no budget below {LARGEST_BUDGET_TRIED:g} FLOPs works with these settings"
    if least > asked:
        return f"; the smallest budget that works with these settings is about {least:.2g} FLOPs"
    return f"; budgets from about {least:.2g} FLOPs up have a plan with these settings"
