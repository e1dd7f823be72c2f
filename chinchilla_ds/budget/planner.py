"""From what the user wants to a plan: law, shape, tokens, batch, optimizer, layout. Pure and deterministic."""

import dataclasses
import math
from collections.abc import Iterator

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.batching import BATCH_MULTIPLE, BatchRequest, batch_unit, choose_batch
from chinchilla_ds.budget.checks import config_problems
from chinchilla_ds.budget.flops import decoder_flops_per_token
from chinchilla_ds.budget.layout import batch_problems, layout_problems, shape_problems, world_size_problems
from chinchilla_ds.budget.parameters import count_parameters
from chinchilla_ds.budget.scaling_laws import Optimum, get_law
from chinchilla_ds.budget.shapes import (
    MAX_RELATIVE_MISS,
    ShapeRequest,
    choose_vocab_size,
    search_shape,
    smallest_shape,
    target_aspect_ratio,
)
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ChinchillaError, ConfigError, LayoutError, PlanError
from chinchilla_ds.plan import (
    BatchPlan,
    Decay,
    ModelShape,
    OptimizerPlan,
    ParallelLayout,
    Precision,
    Prediction,
    RunPlan,
    Schedule,
)
from chinchilla_ds.units import format_count, format_flops

SPENT_TOLERANCE = 0.01
"""How far the exact FLOPs of a plan may lie from its budget."""
MIN_ITERS_OF_A_PLAN = 50
"""Fewer optimizer steps than this cannot spend every budget to SPENT_TOLERANCE, and train nothing worth the name."""
EVALUATIONS_PER_RUN = 10
LARGEST_BUDGET_TRIED = 1e27


def plan(config: RunConfig, *, world_size: int, device: str) -> RunPlan:
    """Resolve a run.

    The shape, the tokens and, where its sizes divide, the batch do not depend on the layout.

    Args:
        config: what the user wants.
        world_size: all ranks.
        device: "cpu" or "cuda"; decides the default precision and the micro-batch.

    Raises:
        ConfigError: values that mean nothing, an unknown law, a batch that the ranks cannot share.
        LayoutError: the layout cannot be built.
        PlanError: the budget is too small, or too large, for any model.
    """
    try:
        return _resolve(config, world_size=world_size, device=device)
    except PlanError as error:
        works = _what_works(config, world_size=world_size, device=device)
        raise PlanError([f"{problem}; {works}" for problem in error.problems]) from None


def smallest_budget(config: RunConfig, *, world_size: int, device: str) -> float | None:
    """Return a budget in FLOPs, at most a tenth above the smallest, for which `config` has a plan; None if none has."""
    probe = _shape_request(config, compute_budget_flops=1.0, num_params=1.0)
    least = count_parameters(shape=smallest_shape(request=probe)).total / MAX_RELATIVE_MISS
    budget = get_law(config.law).budget_for_params(num_params=least)
    while budget < LARGEST_BUDGET_TRIED:
        rounded = float(f"{budget:.1e}")
        try:
            _resolve(dataclasses.replace(config, compute_budget_flops=rounded), world_size=world_size, device=device)
        except ChinchillaError:
            budget *= 1.1
        else:
            return rounded
    return None


def _resolve(config: RunConfig, *, world_size: int, device: str) -> RunPlan:
    layout = _check_and_lay_out(config, world_size=world_size, device=device)
    optimum = get_law(config.law).optimal(compute_budget_flops=config.compute_budget_flops)
    request = _shape_request(config, compute_budget_flops=config.compute_budget_flops, num_params=optimum.num_params)
    shape = search_shape(request=request)
    if shape is None:
        raise PlanError(_no_shape(config, request))
    batch = _choose_batch(config, shape=shape, layout=layout, device=device)
    if problems := [*shape_problems(shape=shape, layout=layout), *batch_problems(batch=batch, layout=layout)]:
        raise LayoutError(problems)
    return _assemble(config, shape=shape, layout=layout, batch=batch, optimum=optimum, device=device)


def _check_and_lay_out(config: RunConfig, *, world_size: int, device: str) -> ParallelLayout:
    """Return the layout, having checked all that can be checked before there is a shape."""
    if values := list(config_problems(config, world_size=world_size, device=device)):
        raise ConfigError(values)
    wanted = config.layout
    tensor, pipeline = wanted.tensor_model_parallel_size, wanted.pipeline_model_parallel_size
    data = max(1, world_size // (tensor * pipeline))
    layout = ParallelLayout(data_parallel_size=data, **vars(wanted))
    broken = [*world_size_problems(world_size=world_size, tensor=tensor, pipeline=pipeline)]
    broken += layout_problems(layout=layout, precision=_precision(config, device=device))
    if broken:
        raise LayoutError(broken)
    if sizes := list(_given_batch_problems(config, layout)):
        raise ConfigError(sizes)
    return layout


def _precision(config: RunConfig, *, device: str) -> Precision:
    return config.precision or (Precision.BF16 if device == "cuda" else Precision.FP32)


def _given_batch_problems(config: RunConfig, layout: ParallelLayout) -> Iterator[str]:
    """Yield why the ranks cannot share the batch that the user gave."""
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
        factors = f"micro_batch_size ({config.micro_batch_size}) x {factors}"
    if layout.virtual_pipeline_model_parallel_size > 1:
        factors += f" x layout.pipeline_model_parallel_size ({layout.pipeline_model_parallel_size})"
    yield f"global_batch_size ({size} sequences) must be a multiple of {factors} = {unit}; nearest values: {near}"


def _shape_request(config: RunConfig, *, compute_budget_flops: float, num_params: float) -> ShapeRequest:
    vocab_size = config.vocab_size or choose_vocab_size(compute_budget_flops=compute_budget_flops)
    return ShapeRequest(
        num_params=num_params,
        vocab_size=vocab_size,
        seq_length=config.seq_length,
        tied_embeddings=config.tied_embeddings,
    )


def _choose_batch(config: RunConfig, *, shape: ModelShape, layout: ParallelLayout, device: str) -> BatchPlan:
    """Return the batch whose steps spend the budget.

    Raises:
        ConfigError: the batch that the user gave leaves too few steps.
        PlanError: even the smallest batch leaves too few steps.
    """
    wanted_tokens = config.compute_budget_flops / decoder_flops_per_token(shape=shape)
    request = BatchRequest(
        wanted_tokens=wanted_tokens,
        seq_length=config.seq_length,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        device=device,
    )
    batch = choose_batch(request=request, layout=layout)
    if batch.train_iters >= MIN_ITERS_OF_A_PLAN:
        return batch
    problem = (
        f"{format_flops(config.compute_budget_flops)} train on {format_count(wanted_tokens)} tokens, which is "
        f"{batch.train_iters} optimizer steps of {batch.global_batch_size} sequences x {config.seq_length} tokens; a "
        f"plan needs at least {MIN_ITERS_OF_A_PLAN}"
    )
    sequences = int(wanted_tokens / config.seq_length / (MIN_ITERS_OF_A_PLAN + 1))
    unit = batch_unit(layout=layout, micro_batch_size=config.micro_batch_size)
    if config.global_batch_size is not None and sequences >= unit:
        nearest = sequences // unit * unit
        raise ConfigError(f"global_batch_size is too large: {problem}; nearest value: {nearest} sequences")
    if config.micro_batch_size is not None and sequences >= unit // config.micro_batch_size:
        nearest = sequences // (unit // config.micro_batch_size)
        raise ConfigError(f"micro_batch_size is too large: {problem}; nearest value: {nearest} sequences")
    raise PlanError(problem)


def _assemble(
    config: RunConfig,
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    optimum: Optimum,
    device: str,
) -> RunPlan:
    num_params = count_parameters(shape=shape).total
    flops_per_token = decoder_flops_per_token(shape=shape)
    num_tokens = batch.train_iters * batch.global_batch_size * shape.seq_length
    optimizer, rate_reason = _optimizer(config, shape=shape, num_tokens=num_tokens)
    law = get_law(config.law)
    made = RunPlan(
        compute_budget_flops=float(config.compute_budget_flops),
        num_params=num_params,
        num_tokens=num_tokens,
        true_flops=flops_per_token * num_tokens,
        flops_per_token=flops_per_token,
        shape=shape,
        batch=batch,
        layout=layout,
        precision=_precision(config, device=device),
        optimizer=optimizer,
        schedule=_schedule(config, batch=batch, shape=shape, peak=optimizer.learning_rate),
        prediction=Prediction(
            law=law.name,
            loss=law.loss(num_params=num_params, num_tokens=num_tokens),
            optimal_num_params=optimum.num_params,
            optimal_num_tokens=optimum.num_tokens,
            optimal_loss=optimum.loss,
        ),
        seed=config.seed,
        eval_interval_iters=_eval_interval_iters(config, batch),
    )
    return dataclasses.replace(made, reasons=tuple(_reasons(config, made, rate_reason)))


def _optimizer(config: RunConfig, *, shape: ModelShape, num_tokens: int) -> tuple[OptimizerPlan, str]:
    non_embedding = count_parameters(shape=shape).non_embedding
    chosen = hyperparameters.choose_learning_rate(non_embedding_params=non_embedding, num_tokens=num_tokens)
    if config.learning_rate is not None:
        reason = f"Learning rate {config.learning_rate:g}: asked for (chosen would have been {chosen.value:.3g})."
        chosen = hyperparameters.LearningRate(value=float(config.learning_rate), reason=reason)
    optimizer = OptimizerPlan(learning_rate=chosen.value, gradient_clipping=float(config.gradient_clipping))
    return optimizer, chosen.reason


def _schedule(config: RunConfig, *, batch: BatchPlan, shape: ModelShape, peak: float) -> Schedule:
    """Return the schedule, exactly as long as the run: a cosine cycle that is too long costs loss.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), figure A1.
    """
    warmup_iters = hyperparameters.choose_warmup_iters(
        num_params=count_parameters(shape=shape).total,
        tokens_per_iter=batch.global_batch_size * shape.seq_length,
        train_iters=batch.train_iters,
    )
    after_warmup = batch.train_iters - warmup_iters
    wsd_iters = max(1, round(hyperparameters.WSD_DECAY_FRACTION * batch.train_iters))
    return Schedule(
        decay=config.decay,
        warmup_iters=warmup_iters,
        decay_iters=after_warmup if config.decay is Decay.COSINE else min(wsd_iters, after_warmup),
        min_learning_rate=hyperparameters.MIN_LEARNING_RATE_FRACTION * peak,
    )


def _eval_interval_iters(config: RunConfig, batch: BatchPlan) -> int:
    if config.eval_interval_tokens is None:
        return max(1, batch.train_iters // EVALUATIONS_PER_RUN)
    return max(1, round(config.eval_interval_tokens / (batch.global_batch_size * config.seq_length)))


def _reasons(config: RunConfig, made: RunPlan, rate_reason: str) -> Iterator[str]:
    yield from _law_reasons(made)
    yield from _shape_reasons(config, made)
    if config.global_batch_size is None:
        wanted = hyperparameters.step_law_batch_tokens(num_tokens=made.num_tokens)
        yield (
            f"Batch {format_count(made.tokens_per_iter)} tokens: Step Law (arXiv:2503.04715) gives "
            f"{format_count(wanted)}; whole sequences that 1 to {BATCH_MULTIPLE} ranks can share, and at least "
            f"{hyperparameters.MIN_TRAIN_ITERS} steps where the budget allows."
        )
    if made.batch.gradient_accumulation_steps < made.layout.pipeline_model_parallel_size:
        yield "Fewer micro-batches than pipeline stages: some stages are always idle."
    yield rate_reason
    yield "Weight decay 0.1, betas 0.9 and 0.95: as in the runs that Step Law was fitted on."
    yield (
        f"Warm-up {made.schedule.warmup_iters} steps: as many tokens as parameters (arXiv:2406.19146), at most a tenth "
        f"of the run and {hyperparameters.MAX_WARMUP_ITERS} steps."
    )


def _law_reasons(made: RunPlan) -> Iterator[str]:
    law, prediction = get_law(made.prediction.law), made.prediction
    yield (
        f"N* {format_count(prediction.optimal_num_params)} and D* {format_count(prediction.optimal_num_tokens)} for "
        f"C = 6 N D: {law.source}."
    )
    beyond = law.extrapolation(compute_budget_flops=made.compute_budget_flops)
    if beyond > 1:
        yield (
            f"The budget lies {beyond:.3g}x outside the {law.min_flops:g} to {law.max_flops:g} FLOPs that the law was "
            "fitted on: trust the split into N and D as a rule of thumb only."
        )
    guess = math.log(made.shape.vocab_size)
    if prediction.loss is not None and prediction.loss >= guess:
        yield (
            f"The predicted loss of {prediction.loss:.2f} nats per token is no prediction: guessing among "
            f"{made.shape.vocab_size} pieces gives {guess:.2f}."
        )


def _shape_reasons(config: RunConfig, made: RunPlan) -> Iterator[str]:
    shape = made.shape
    target = target_aspect_ratio(num_params=made.prediction.optimal_num_params)
    yield (
        f"{shape.num_layers} layers of {shape.hidden_size}: nearest to N* and to {target:.0f} hidden channels per "
        "layer; the layout has no say."
    )
    if config.vocab_size is None:
        yield f"Vocabulary {shape.vocab_size}: by budget, so that a small model is not mostly embedding tables."
    spent = made.true_flops / made.compute_budget_flops
    yield (
        f"D {format_count(made.num_tokens)}: the tokens that spend {spent:.2%} of the budget by this decoder's exact "
        "FLOPs, attention counted over the full context."
    )


def _no_shape(config: RunConfig, request: ShapeRequest) -> str:
    smallest = count_parameters(shape=smallest_shape(request=request)).total
    budget = f"compute_budget_flops ({format_flops(config.compute_budget_flops)})"
    wanted = f"the law {config.law!r} asks for N = {format_count(request.num_params)} parameters"
    if smallest > request.num_params:
        vocabulary = f"a vocabulary of {request.vocab_size} pieces"
        return f"{budget} is too small: {wanted}, and the smallest model with {vocabulary} has {format_count(smallest)}"
    return (
        f"{budget} has no shape: {wanted}, and no shape of the search lies within a factor {MAX_RELATIVE_MISS:g} of it"
    )


def _what_works(config: RunConfig, *, world_size: int, device: str) -> str:
    least = smallest_budget(config, world_size=world_size, device=device)
    if least is None:
        return f"no budget below {LARGEST_BUDGET_TRIED:g} FLOPs works with these settings"
    if least > config.compute_budget_flops:
        return f"the smallest budget that works with these settings is about {least:.2g} FLOPs"
    return f"budgets from about {least:.2g} FLOPs up have a plan with these settings"
