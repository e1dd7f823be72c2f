"""The plan as one screen of text."""

import math
import textwrap
from collections.abc import Iterator

from chinchilla_ds.plan import Offload, Recompute, RunPlan
from chinchilla_ds.units import format_count, format_flops

_LABEL_WIDTH = 14
_WIDTH = 120


def format_plan(plan: RunPlan, /) -> str:
    """Return the plan as text for a terminal, ending without a newline."""
    rows = [*_model_rows(plan), *_training_rows(plan), ("layout", _layout(plan)), ("seed", str(plan.seed))]
    lines = [f"{label:<{_LABEL_WIDTH}}{text}" for label, text in rows]
    wrap = textwrap.TextWrapper(width=_WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    lines += ["why", *(wrap.fill(reason) for reason in plan.reasons)]
    return "\n".join(lines)


def _model_rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    shape, prediction = plan.shape, plan.prediction
    spent = plan.true_flops / plan.compute_budget_flops
    yield "budget", f"{format_flops(plan.compute_budget_flops)}; the run spends {spent:.2%} of it"
    yield "N", f"{format_count(plan.num_params)} parameters (optimum {format_count(prediction.optimal_num_params)})"
    yield "D", f"{format_count(plan.num_tokens)} tokens (optimum {format_count(prediction.optimal_num_tokens)})"
    yield "D / N", f"{plan.tokens_per_param:.3g} tokens per parameter"
    if prediction.loss is not None:
        yield (
            "predicted",
            f"{prediction.loss:.3f} nats per token by {prediction.law}{_predicted_note(prediction.loss, plan)}",
        )
    groups = f"{shape.num_attention_heads} heads of {shape.kv_channels}, {shape.num_query_groups} query groups"
    yield "shape", f"{shape.num_layers} layers, hidden {shape.hidden_size}, FFN {shape.ffn_hidden_size}, {groups}"
    tied = "tied" if shape.tied_embeddings else "untied"
    yield "vocabulary", f"{shape.vocab_size} pieces in {shape.padded_vocab_size} rows, {tied}"


def _predicted_note(loss: float, plan: RunPlan) -> str:
    """Return a warning where the law says less than guessing would: it is then far outside its range."""
    guess = math.log(plan.shape.vocab_size)
    if loss < guess:
        return ""
    return f" (meaningless: guessing gives {guess:.3f}, the law is out of range)"


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
    yield (
        "optimizer",
        f"AdamW, learning rate {optimizer.learning_rate:.3g}, weight decay {optimizer.weight_decay:g}, "
        f"betas {optimizer.beta1:g} and {optimizer.beta2:g}, {clipping}",
    )
    yield (
        "schedule",
        f"warm-up {schedule.warmup_iters} steps, {schedule.decay} over {schedule.decay_iters} "
        f"to {schedule.min_learning_rate:.3g}",
    )
    yield "precision", str(plan.precision)


def _layout(plan: RunPlan) -> str:
    layout = plan.layout
    sizes = f"TP {layout.tensor_model_parallel_size} x PP {layout.pipeline_model_parallel_size}"
    if layout.virtual_pipeline_model_parallel_size > 1:
        sizes += f" ({layout.virtual_pipeline_model_parallel_size} chunks per stage)"
    extras = [f"ZeRO-{layout.zero_stage}"]
    extras += ["sequence parallel"] if layout.sequence_parallel else []
    extras += [f"recompute {layout.recompute}"] if layout.recompute is not Recompute.NONE else []
    extras += [f"optimizer on {layout.offload_optimizer}"] if layout.offload_optimizer is not Offload.NONE else []
    extras += [f"parameters on {layout.offload_param}"] if layout.offload_param is not Offload.NONE else []
    return f"{sizes} x DP {layout.data_parallel_size} = {layout.world_size} ranks, {', '.join(extras)}"
