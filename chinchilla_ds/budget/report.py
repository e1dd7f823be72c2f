"""The plan as text: a sentence for each choice and its reason, and a summary of one screen."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.hyperparameter_rules import batch_sizes_tokens, spread
from chinchilla_ds.budget.layout.search import Candidate, LayoutSearch
from chinchilla_ds.budget.optimizer import optimizer_reasons
from chinchilla_ds.budget.prediction import why_no_prediction
from chinchilla_ds.budget.shape.choice import ModelChoice
from chinchilla_ds.config import RunConfig
from chinchilla_ds.optimizers import optimizer_of
from chinchilla_ds.run_plan import MemoryBytes, Offload, OptimizerPlan, ParallelLayout, Recompute, RunPlan
from chinchilla_ds.units import format_bytes, format_count, format_duration, format_flops
from chinchilla_ds.weights import stage_layers

_LABEL_WIDTH = 14
_WIDTH = 120
LONGEST_RUN_S = 180 * 86400.0
"""Half a year: a plan that takes longer says how many devices would not."""
_MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "margin")


def format_plan(plan: RunPlan, /, *, search: LayoutSearch | None = None) -> str:
    """Return the plan as text for a terminal, ending without a newline.

    Args:
        plan: the plan to show.
        search: the search that chose its layout; None if the layout was given.
    """
    rows = [*_model_rows(plan), *_training_rows(plan), *_layout_rows(plan, search), ("seed", str(plan.seed))]
    lines = [_row(label, text) for label, text in rows]
    if search is not None:
        lines += _search_lines(search)
    lines += ["why", *(_bullet(reason) for reason in plan.reasons)]
    return "\n".join(lines)


def format_memory(plan: RunPlan, /, *, stages: Sequence[MemoryBytes]) -> str:
    """Return the memory of one rank of each pipeline stage as a table; stages with equal needs share a row."""
    head = f"{'stage':<12}" + "".join(f"{part:>13}" for part in (*_MEMORY_PARTS, "total", "host", "NVMe"))
    lines = [describe_layout(plan.layout), "", head]
    for first, last, stage in _same_stages(stages):
        name = str(first) if first == last else f"{first} to {last}"
        values = [*(getattr(stage, part) for part in _MEMORY_PARTS), stage.total, stage.host, stage.nvme]
        lines.append(f"{name:<12}" + "".join(f"{format_bytes(value):>13}" for value in values))
    fullest = max(stages, key=lambda stage: stage.total)
    lines += ["", f"The fullest rank is of stage {fullest.pipeline_stage}: {format_bytes(fullest.total)} per device."]
    return "\n".join(lines)


def describe_layout(layout: ParallelLayout, /) -> str:
    """Return a layout in one line."""
    sizes = f"TP {layout.tensor_model_parallel_size} x PP {layout.pipeline_model_parallel_size}"
    if layout.virtual_pipeline_model_parallel_size > 1:
        sizes += f" ({layout.virtual_pipeline_model_parallel_size} chunks per stage)"
    extras = [f"ZeRO-{layout.zero_stage}"]
    extras += ["sequence parallel"] if layout.sequence_parallel else []
    extras += [f"recompute {layout.recompute}"] if layout.recompute is not Recompute.NONE else []
    extras += [f"optimizer on {layout.offload_optimizer}"] if layout.offload_optimizer is not Offload.NONE else []
    extras += [f"parameters on {layout.offload_param}"] if layout.offload_param is not Offload.NONE else []
    ranks = "1 rank" if layout.world_size == 1 else f"{layout.world_size} ranks"
    return f"{sizes} x DP {layout.data_parallel_size} = {ranks}, {', '.join(extras)}"


def _row(label: str, text: str) -> str:
    indent = " " * _LABEL_WIDTH
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=f"{label:<{_LABEL_WIDTH}}",
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _bullet(text: str) -> str:
    return textwrap.fill(text, width=_WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)


def _model_rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    shape, prediction = plan.shape, plan.prediction
    interval = prediction.interval
    spent = plan.true_flops / plan.compute_budget_flops
    yield "budget", f"{format_flops(plan.compute_budget_flops)}; the run spends {spent:.2%} of it"
    params = f"{format_count(plan.num_params)} parameters (optimum {format_count(prediction.optimal_num_params)}"
    tokens = f"{format_count(plan.num_tokens)} tokens (optimum {format_count(prediction.optimal_num_tokens)}"
    ratio = f"{plan.tokens_per_param:.3g} tokens per parameter"
    if interval is None:
        yield from (("N", f"{params})"), ("D", f"{tokens})"), ("D / N", ratio))
    else:
        level = f"{interval.level:.0%}"
        yield "N", f"{params}, {level} interval {_counts(interval.num_params)})"
        yield "D", f"{tokens}, {level} interval {_counts(interval.num_tokens)})"
        low, high = interval.tokens_per_param
        yield "D / N", f"{ratio} ({level} interval of the optimum {low:.3g} to {high:.3g})"
    if plan.unique_tokens is not None:
        yield (
            "epochs",
            f"{plan.num_tokens / plan.unique_tokens:.3g} over {format_count(plan.unique_tokens)} unique tokens",
        )
    yield "predicted", _predicted(plan)
    groups = f"{shape.num_attention_heads} heads of {shape.kv_channels}, {shape.num_query_groups} query groups"
    switched_on = [name for name, on in shape.switches().items() if on and name != "tied_embeddings"]
    parts = [f"{shape.num_layers} layers", f"hidden {shape.hidden_size}", f"FFN {shape.ffn_hidden_size}", groups]
    yield "shape", ", ".join([*parts, *switched_on])
    tied = "tied" if shape.tied_embeddings else "untied"
    yield "vocabulary", f"{shape.vocab_size} pieces in {shape.padded_vocab_size} rows, {tied}"


def _counts(bounds: tuple[float, float]) -> str:
    return f"{format_count(bounds[0])} to {format_count(bounds[1])}"


def _predicted(plan: RunPlan) -> str:
    """Return the predicted loss, or why there is none."""
    if (why := why_no_prediction(plan)) is not None:
        return f"no loss: {why}"
    prediction = plan.prediction
    text = f"{prediction.loss:.3f} nats per token by {prediction.loss_law}"
    if prediction.interval is not None:
        low, high = prediction.interval.loss
        text += f" ({prediction.interval.level:.0%} interval {low:.3f} to {high:.3f})"
    return text


def _training_rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    batch, optimizer, schedule = plan.batch, plan.optimizer, plan.schedule
    yield (
        "batch",
        f"{batch.global_batch_size} sequences of {plan.shape.seq_length} = {format_count(plan.tokens_per_iter)} tokens"
        f" (micro-batch {batch.micro_batch_size} x accumulation {batch.gradient_accumulation_steps}"
        f" x DP {plan.layout.data_parallel_size})",
    )
    yield "steps", f"{batch.train_iters}, evaluation every {plan.eval_interval_iters}"
    clipping = f"clipping at {optimizer.gradient_clipping:g}" if optimizer.gradient_clipping else "no clipping"
    yield "optimizer", f"{', '.join(_optimizer_settings(optimizer))}, {clipping}"
    yield (
        "schedule",
        f"warm-up {schedule.warmup_iters} steps, {schedule.decay} over {schedule.decay_iters} "
        f"to {schedule.min_learning_rate:.3g}",
    )
    yield "precision", str(plan.precision)


def _optimizer_settings(plan: OptimizerPlan) -> Iterator[str]:
    """Yield the optimizer's name, and the settings that it reads."""
    spec = optimizer_of(plan)
    yield spec.title
    yield f"learning rate {plan.learning_rate:.3g}"
    if "weight_decay" in spec.settings:
        yield f"weight decay {plan.weight_decay:g}"
    if {"beta1", "beta2"} <= set(spec.settings):
        yield f"betas {plan.beta1:g} and {plan.beta2:g}"
    if "epsilon" in spec.settings and plan.epsilon != OptimizerPlan.epsilon:
        yield f"epsilon {plan.epsilon:g}"


def _layout_rows(plan: RunPlan, search: LayoutSearch | None) -> Iterator[tuple[str, str]]:
    cluster, memory, step_time = plan.cluster, plan.memory_bytes, plan.step_time
    if cluster is not None:
        devices = f"{cluster.world_size} x {cluster.device}"
        yield "cluster", f"{devices}, {cluster.devices_per_node} per node" if cluster.world_size > 1 else devices
    yield "layout", describe_layout(plan.layout)
    if memory is not None:
        parts = ", ".join(f"{part} {format_bytes(getattr(memory, part))}" for part in _MEMORY_PARTS)
        stage = f" (stage {memory.pipeline_stage})" if plan.layout.pipeline_model_parallel_size > 1 else ""
        held = "" if cluster is None else f" of {format_bytes(cluster.device_memory_bytes)}"
        away = [f"host {format_bytes(memory.host)}"] if memory.host else []
        away += [f"NVMe {format_bytes(memory.nvme)}"] if memory.nvme else []
        yield "memory", f"{format_bytes(memory.total)}{held} per device{stage}: {', '.join([parts, *away])}"
    if step_time is not None and plan.wall_clock_s is not None:
        rows = (
            ("compute", step_time.compute_s),
            ("TP", step_time.tensor_parallel_s),
            ("PP", step_time.pipeline_s),
            ("DP", step_time.data_parallel_s),
            ("optimizer", step_time.optimizer_s),
        )
        parts = ", ".join(f"{name} {value / step_time.total_s:.0%}" for name, value in rows)
        yield "step", f"{step_time.total_s:.3g} s: {parts}; MFU {step_time.mfu:.1%}, HFU {step_time.hfu:.1%}"
        hours = plan.wall_clock_s * plan.layout.world_size / 3600
        long = " (longer than half a year)" if plan.wall_clock_s > LONGEST_RUN_S else ""
        yield "time", f"{format_duration(plan.wall_clock_s)}{long}, {hours:,.3g} GPU-hours"


def _search_lines(search: LayoutSearch) -> Iterator[str]:
    yield _row(
        "considered",
        f"{search.num_considered:,} layouts; {search.num_legal:,} can be built, {search.num_fitting:,} of them fit",
    )
    for label, candidate in zip(["next best", *[""] * 9], search.runners_up, strict=False):
        yield _row(label, _runner_up(candidate, search.best))
    for label, rejection in zip(["rejected", *[""] * 99], search.rejected, strict=False):
        such_as = rejection.example if "memory" in rejection.reason else rejection.example.split(":")[0]
        yield _row(label, f"{rejection.count:,} {rejection.reason} (such as {such_as})")


def _runner_up(candidate: Candidate, best: Candidate) -> str:
    text = f"{describe_layout(candidate.layout)}, micro-batch {candidate.batch.micro_batch_size}"
    if candidate.step_time is not None and best.step_time is not None:
        slower = f"{candidate.step_time.total_s / best.step_time.total_s - 1:+.1%}"
        text += ": the same time" if slower in ("+0.0%", "-0.0%") else f": {slower} time"
    return f"{text}, {format_bytes(candidate.memory.total)}"


def _same_stages(stages: Sequence[MemoryBytes]) -> Iterator[tuple[int, int, MemoryBytes]]:
    """Yield runs of neighbouring stages with the same numbers: first, last, and the numbers."""
    start = 0
    for index in range(1, len(stages) + 1):
        same = index < len(stages) and dataclasses.replace(stages[index], pipeline_stage=0) == dataclasses.replace(
            stages[start], pipeline_stage=0
        )
        if not same:
            yield start, index - 1, stages[start]
            start = index


# ---- why -------------------------------------------------------------------------------------------------------------


def plan_reasons(config: RunConfig, *, choice: ModelChoice, made: RunPlan, rate_reason: str) -> Iterator[str]:
    """Yield one sentence per choice, with its source.

    Args:
        config: the user's configuration.
        choice: the model, and the laws that chose it.
        made: the plan.
        rate_reason: the sentence about the learning rate.
    """
    yield from _law_reasons(choice, made)
    yield from choice.reasons
    spent = made.true_flops / made.compute_budget_flops
    yield (
        f"D {format_count(made.num_tokens)}: the tokens that spend {spent:.2%} of the budget by this decoder's exact "
        "FLOPs, attention counted over the full context."
    )
    if config.global_batch_size is None:
        laws = batch_sizes_tokens(shape=made.shape, num_tokens=made.num_tokens)
        source = hyperparameters.batch_source(num_params=made.num_params, num_tokens=made.num_tokens)
        yield (
            f"Batch {format_count(made.tokens_per_iter)} tokens: {source}; in whole sequences that many data-parallel "
            f"sizes divide, and at least {hyperparameters.MIN_TRAIN_ITERS} steps where the budget allows. "
            f"All rules: {spread(laws, show=format_count)}."
        )
    if made.batch.gradient_accumulation_steps < made.layout.pipeline_model_parallel_size:
        yield "Fewer micro-batches than pipeline stages: some stages are always idle."
    yield from _uneven_stages(made)
    yield from optimizer_reasons(config, made=made, rate_reason=rate_reason)


def _uneven_stages(made: RunPlan) -> Iterator[str]:
    """Yield the layers of each stage where they are not equal."""
    layers = stage_layers(num_layers=made.shape.num_layers, pipeline=made.layout.pipeline_model_parallel_size)
    if len(set(layers)) > 1:
        runs = [(count, len(list(group))) for count, group in itertools.groupby(layers)]
        counts = ", ".join(str(count) if times == 1 else f"{times} x {count}" for count, times in runs)
        yield (
            f"Layers per pipeline stage: {counts}. Stages at the ends have fewer: the first also embeds, the last also "
            "makes the logits (as in Llama 3, arXiv:2407.21783, section 3.3.2)."
        )


def _law_reasons(choice: ModelChoice, made: RunPlan) -> Iterator[str]:
    law, prediction = choice.laws.law, made.prediction
    yield (
        f"The optimum for {made.compute_budget_flops:.3g} FLOPs is N {format_count(prediction.optimal_num_params)} and "
        f"D {format_count(prediction.optimal_num_tokens)}, by {law.source}, with this decoder's FLOPs."
    )
    if not choice.laws.is_one:
        yield f"{law.name} gives the optimum but no loss: the predicted loss is {prediction.loss_law}'s."
    if (warning := law.extrapolation_warning(compute_budget_flops=made.compute_budget_flops)) is not None:
        yield warning
    if remark := choice.laws.losses.law.remark:
        yield f"Note: {remark}."
    if (why := why_no_prediction(made)) is not None:
        yield f"No loss is predicted: {why}."


def duration_remark(plan: RunPlan) -> Iterator[str]:
    """Yield a remark on a run that takes longer than LONGEST_RUN_S."""
    if plan.wall_clock_s is None or plan.wall_clock_s <= LONGEST_RUN_S:
        return
    days = plan.wall_clock_s / 86400
    devices = math.ceil(plan.layout.world_size * plan.wall_clock_s / LONGEST_RUN_S)
    yield (
        f"Warning: the run takes {days:,.0f} days. At the same MFU, {devices:,} devices would take "
        f"{LONGEST_RUN_S / 86400:.0f} days; or give a smaller budget."
    )
