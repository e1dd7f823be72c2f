"""RunPlan: every number of a run, resolved and frozen. Pure data; JSON in and out.

`budget.planner.plan` makes it; everything after reads it and recomputes nothing.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.ranges import Ge, Gt, Le, Lt, MultipleOf
from chinchilla_ds.structured import build, parse_json

PLAN_FORMAT_VERSION = 2
DEVICE_KINDS = ("cpu", "cuda")
MAX_SEED = 2**31 - 1
MAX_AMOUNT = 10**18
MAX_WIDTH = 2**24
MAX_SEQUENCES = 10**12
MAX_GRADIENT_CLIPPING = 1e9
DEFAULT_OBJECTIVE = "cross_entropy"
_ROUNDING = 1e-9
"""Largest relative difference between a total of floats and the sum of its parts."""

# Ranges apply to a plan that is read. Upper bounds are far beyond any machine: they catch typing errors, and
# values that would make a loop over layers or ranks endless.
Amount = Annotated[int, Ge(1), Le(MAX_AMOUNT)]
"""A number of tokens or steps."""
Sequences = Annotated[int, Ge(1), Le(MAX_SEQUENCES)]
"""A number within one optimizer step, or a part of it."""
Width = Annotated[int, Ge(1), Le(MAX_WIDTH)]
"""A dimension of the model, or a number of ranks."""
Steps = Annotated[int, Ge(0), Le(MAX_AMOUNT)]
Bytes = Annotated[int, Ge(0), Le(10**24)]
Flops = Annotated[float, Gt(0), Le(1e36)]
Positive = Annotated[float, Gt(0), Le(1e36)]
Loss = Annotated[float, Gt(0), Le(1e9)]
"""Nats per token."""
Seconds = Annotated[float, Ge(0), Le(1e18)]
Rate = Annotated[float, Gt(0), Le(1)]
_STATE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
ADAMW = PluginSpec(name="adamw")
ADAM_STATES = ("exp_avg", "exp_avg_sq")
"""First and second moment of the gradient, by torch's names."""
Range = tuple[Positive, Positive]
"""Lower and upper bound."""


class Precision(StrEnum):
    """Compute precision. BF16 and FP16 keep FP32 master weights in the optimizer."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype_name(self) -> str:
        """The type of a tensor in this precision, as torch and transformers call it."""
        return {Precision.FP32: "float32", Precision.BF16: "bfloat16", Precision.FP16: "float16"}[self]


class Recompute(StrEnum):
    """Recomputation: what the backward pass computes again instead of keeping."""

    NONE = "none"
    SELECTIVE = "selective"
    """Core attention only."""
    SELECTIVE_OP = "selective_op"
    """All operations of a layer but attention and every second matmul (torchtitan's selective op)."""
    FULL = "full"
    """Every transformer layer, from its input."""


class Offload(StrEnum):
    """Where optimizer states or parameters are kept when they are not in use."""

    NONE = "none"
    CPU = "cpu"
    NVME = "nvme"


class Decay(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    WSD = "wsd"
    """Warm-up, stable, then a linear decay."""


@dataclass(frozen=True, kw_only=True)
class DecoderSwitches:
    """What can be switched on in a decoder of any size; the user's wish and the shape both have these fields."""

    tied_embeddings: bool = False
    """Whether the output projection is the embedding table."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normed before rotation, as in Qwen3."""

    def switches(self) -> dict[str, bool]:
        """Return the switches alone, by the names of their fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(DecoderSwitches)}


@dataclass(frozen=True, kw_only=True)
class ModelShape(DecoderSwitches):
    """The discrete decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no biases."""

    num_layers: Annotated[int, Ge(1), Le(10_000)]
    hidden_size: Width
    ffn_hidden_size: Width
    """Width of each of the gate and up projections."""
    num_attention_heads: Annotated[int, Ge(1), Le(2**16)]
    num_query_groups: Annotated[int, Ge(1), Le(2**16)]
    """Key/value heads; equal to num_attention_heads for plain multi-head attention."""
    kv_channels: Annotated[int, Ge(2), Le(2**16), MultipleOf(2)]
    """Width of one attention head; even, since rotary positions rotate pairs of channels."""
    vocab_size: Width
    """Pieces requested from the tokenizer."""
    padded_vocab_size: Width
    """Rows of the embedding table: vocab_size rounded up to a multiple of 128."""
    seq_length: Width
    """Tokens per training sequence."""
    rotary_base: Annotated[float, Ge(1), Le(1e15)] = 10000.0
    norm_epsilon: Annotated[float, Gt(0), Le(0.1)] = 1e-5
    init_std: Rate = 0.02
    """Standard deviation of the initial weights; projections into the residual stream divide it by sqrt(2 layers)."""

    def contradictions(self) -> Iterator[str]:
        """Yield why these sizes are not those of one decoder."""
        heads, groups = self.num_attention_heads, self.num_query_groups
        if heads % groups:
            yield f"shape.num_attention_heads ({heads}) must be a multiple of shape.num_query_groups ({groups})"
        if self.vocab_size > self.padded_vocab_size:
            yield (
                f"shape.padded_vocab_size ({self.padded_vocab_size} rows) must hold shape.vocab_size "
                f"({self.vocab_size} pieces)"
            )


FUNCTION_FIELDS = tuple(
    field.name for field in dataclasses.fields(ModelShape) if field.name not in ("vocab_size", "seq_length", "init_std")
)
"""Fields that decide which function given weights compute. Of the others, vocab_size lies within the table's rows,
positions are rotary whatever the length, and init_std is only used for the initial weights."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the token budget is split into optimizer steps."""

    global_batch_size: Sequences
    """Sequences per optimizer step, over all data-parallel ranks."""
    micro_batch_size: Sequences
    """Sequences in one forward pass of one data-parallel rank."""
    gradient_accumulation_steps: Sequences
    """Micro-batches per optimizer step and data-parallel rank."""
    train_iters: Amount
    """Optimizer steps of the whole run."""


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """How the model and its training state are spread over world_size ranks."""

    tensor_model_parallel_size: Width = 1
    pipeline_model_parallel_size: Width = 1
    virtual_pipeline_model_parallel_size: Width = 1
    """Model chunks per pipeline stage; above 1 the schedule is interleaved 1F1B."""
    data_parallel_size: Width = 1
    zero_stage: Annotated[int, Ge(0), Le(3)] = 0
    sequence_parallel: bool = False
    """Whether norms and residuals are split over the tensor-parallel group along the sequence."""
    recompute: Recompute = Recompute.NONE
    offload_optimizer: Offload = Offload.NONE
    offload_param: Offload = Offload.NONE

    @property
    def world_size(self) -> int:
        """All ranks: TP x PP x DP."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.data_parallel_size


@dataclass(frozen=True, kw_only=True)
class OptimizerPlan:
    """The optimizer and its settings; norms are not decayed (the decoder has no biases)."""

    plugin: PluginSpec = ADAMW
    """Which one, and its arguments: `optimizers.optimizer_of` finds it."""
    states: tuple[str, ...] = ADAM_STATES
    """What it keeps for a weight, each of the weight's shape, in FP32; checkpoints hold them under these names."""
    learning_rate: Rate
    """Peak learning rate."""
    weight_decay: Annotated[float, Ge(0), Le(1)] = 0.1
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    epsilon: Annotated[float, Gt(0), Le(0.1)] = 1e-8
    gradient_clipping: Annotated[float, Ge(0), Le(MAX_GRADIENT_CLIPPING)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""

    def contradictions(self) -> Iterator[str]:
        """Yield what no checkpoint could hold the states under."""
        for name in self.states:
            if not _STATE_NAME.fullmatch(name) or name == "weight":
                yield (
                    f"optimizer.states has {name!r:.80}; a state is named by small letters, digits and underscores, "
                    "and not weight"
                )
        if len(set(self.states)) < len(self.states):
            yield "optimizer.states has a name twice"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over the optimizer steps actually taken."""

    decay: Decay = Decay.COSINE
    warmup_iters: Steps
    decay_iters: Steps
    """Steps of the decay phase: cosine, all after warm-up; WSD, the last ones."""
    min_learning_rate: Annotated[float, Ge(0), Le(1)]

    def contradictions(self, *, train_iters: int) -> Iterator[str]:
        """Yield why warm-up and decay do not fill a run of `train_iters` steps as the schedule's shape requires."""
        warmup, decay = self.warmup_iters, self.decay_iters
        if warmup < 0 or decay < 0 or warmup + decay > train_iters:
            yield f"warmup_iters ({warmup}) + decay_iters ({decay}) must fit into train_iters ({train_iters})"
        elif self.decay is Decay.COSINE and warmup + decay != train_iters:
            yield (
                f"a cosine decays over all {train_iters - warmup} steps after its {warmup} warm-up steps, not over "
                f"{decay}"
            )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Interval of the budget's optimum with probability `level`, by the uncertainty of the law's own fit.

    Leaves out what another law, another text or another tokenizer would say.
    """

    level: Annotated[float, Gt(0), Lt(1)]
    """Probability, such as 0.8: the 10th to the 90th percentile."""
    num_params: Range
    num_tokens: Range
    tokens_per_param: Range
    loss: Range
    """Interval of the loss for this plan's N and D, nats per token: of one run where the law has draws."""

    def contradictions(self) -> Iterator[str]:
        """Yield the ranges whose lower bound is above the upper one."""
        for name in ("num_params", "num_tokens", "tokens_per_param", "loss"):
            least, most = getattr(self, name)
            if least > most:
                yield f"prediction.interval.{name} must start at its lower bound, and {least:g} is above {most:g}"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The scaling law's prediction for this run."""

    law: str
    """The law that chose N and D: a name in budget.laws.lookup.LAWS, or of a fitted law."""
    loss_law: str
    """The law that predicts the loss: the same, or the default one if that law gives only the optimum."""
    loss: Loss
    """Predicted final loss of the discrete shape and token count, nats per token of loss_law's own tokenizer."""
    optimal_num_params: Positive
    """N of the continuous optimum: over a continuous family of shapes, with our decoder's FLOPs."""
    optimal_num_tokens: Positive
    optimal_loss: Loss
    interval: Interval | None = None
    """None if the law's authors publish no usable uncertainty."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines that a plan is made for."""

    device: str
    """Name in budget.speed.devices.DEVICES, or in a hardware file."""
    world_size: Width
    """Number of devices."""
    devices_per_node: Width
    """Devices joined by the fast link (NVLink, Infinity Fabric)."""
    device_memory_bytes: Annotated[int, Ge(1), Le(10**18)]
    """Memory of one device, bytes."""


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Peak memory of the fullest rank, in bytes."""

    weights: Bytes
    """Parameters in compute precision that stay on the device."""
    gradients: Bytes
    optimizer: Bytes
    """FP32 master weights and Adam's two moments."""
    activations: Bytes
    """Activations saved for all micro-batches in flight, without the logits."""
    logits: Bytes
    """Output logits, and the copies that the loss makes of them; the last pipeline stage's."""
    buffers: Bytes
    """Communication buckets, gathered parameters, and copies that one step makes."""
    margin: Bytes
    """Fragmentation of the allocator, and memory of the device's context and libraries."""
    total: Bytes
    """Sum of the above."""
    objective: Bytes = 0
    """What the objective keeps beside the decoder: states and activations of its own, and of a companion."""
    host: Bytes = 0
    """CPU memory of offloaded states, of this rank."""
    nvme: Bytes = 0
    """NVMe space of offloaded states, of this rank."""
    pipeline_stage: Annotated[int, Ge(0), Le(10_000)] = 0
    """The stage that this rank belongs to."""

    def contradictions(self) -> Iterator[str]:
        """Yield a problem if the total is not the sum of the parts."""
        parts = self.weights + self.gradients + self.optimizer + self.activations
        parts += self.logits + self.buffers + self.margin + self.objective
        if self.total != parts:
            yield f"memory_bytes.total is {self.total}, and the parts add up to {parts}"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Expected time of one optimizer step, in seconds, and the rates that follow from it."""

    compute_s: Seconds
    """Matmuls and attention, recomputation included, at the rate the device is expected to reach."""
    tensor_parallel_s: Seconds
    """Collectives of tensor and sequence parallelism, which overlap with nothing."""
    pipeline_s: Seconds
    """Idle time of the pipeline (its bubble), and sends between stages."""
    data_parallel_s: Seconds
    """Collectives of ZeRO and data parallelism that do not overlap with computation."""
    optimizer_s: Seconds
    """AdamW's step, and transfers of offloaded states."""
    total_s: Annotated[float, Gt(0), Le(1e18)]
    """Sum of the above."""
    mfu: Rate
    """Model FLOPs of the step / (total_s x world_size x peak)."""
    hfu: Rate
    """The same with recomputation counted."""

    def contradictions(self) -> Iterator[str]:
        """Yield the totals that are not the sums of their parts."""
        parts = self.compute_s + self.tensor_parallel_s + self.pipeline_s + self.data_parallel_s + self.optimizer_s
        if not math.isclose(self.total_s, parts, rel_tol=_ROUNDING):
            yield f"step_time.total_s is {self.total_s:g}, and the parts add up to {parts:g} s"
        if self.hfu < self.mfu * (1 - _ROUNDING):
            yield f"step_time.hfu ({self.hfu:g}) counts recomputation too, so it must be at least mfu ({self.mfu:g})"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that a run needs, resolved."""

    compute_budget_flops: Flops
    num_params: Amount
    """Parameters of the decoder, embeddings included."""
    num_tokens: Amount
    """train_iters x global_batch_size x seq_length."""
    true_flops: Flops
    """Model FLOPs of the whole run by the exact count of this decoder (no recomputation)."""
    flops_per_token: Flops
    """Model FLOPs per trained token, forward and backward."""
    shape: ModelShape
    batch: BatchPlan
    layout: ParallelLayout
    device: str
    """Kind of device that the plan was made for, "cpu" or "cuda": decides default precision, micro-batch and memory."""
    precision: Precision
    optimizer: OptimizerPlan
    schedule: Schedule
    prediction: Prediction
    seed: Annotated[int, Ge(0), Le(MAX_SEED)]
    eval_interval_iters: Amount
    """Optimizer steps between evaluations on the held-out part."""
    document_mask: bool = False
    """Whether attention stays within a document, where a sequence holds several. FLOPs are counted without it."""
    objective: PluginSpec = field(default_factory=lambda: PluginSpec(name=DEFAULT_OBJECTIVE))
    """What makes the loss: a name, or `module:Class`, and its arguments."""
    objective_flops_per_token: Annotated[float, Ge(0), Le(1e36)] = 0.0
    """The objective's share of flops_per_token, beyond the decoder's forward and backward pass."""
    unique_tokens: Amount | None = None
    """Available distinct tokens; num_tokens beyond them are repetitions. None: as many as num_tokens."""
    cluster: Cluster | None = None
    """None: no device was named."""
    memory_bytes: MemoryBytes | None = None
    """Expected peak of the fullest rank; None: not estimated."""
    step_time: StepTime | None = None
    """Expected time of a step; None: the device's rates are unknown."""
    callbacks: tuple[PluginSpec, ...] = ()
    """Callbacks from outside this package, by name and arguments."""
    reasons: tuple[str, ...] = ()
    """One sentence per choice, with its source."""

    def __post_init__(self) -> None:
        """Check the parts against each other; a plan that contradicts itself is a bug, or was edited.

        Raises:
            ValueError: every contradiction, one per line.
        """
        if problems := list(_contradictions(self)):
            raise ValueError("\n".join(problems))

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.num_tokens / self.num_params

    @property
    def tokens_per_iter(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.global_batch_size * self.shape.seq_length

    def consumed_tokens(self, *, iteration: int) -> int:
        """Return the tokens that a model has learnt from after `iteration` optimizer steps: D so far.

        Steps that were skipped (a non-finite gradient, FP16's overflow) taught nothing, nor did those that a rewind
        took back: neither is in `iteration`.
        """
        return iteration * self.tokens_per_iter

    def flops_spent(self, *, attempts: int) -> float:
        """Return the model FLOPs that `attempts` steps have cost, by the plan's exact count: C so far.

        A step that was skipped, or taken back by a rewind, has been computed all the same: `attempts` counts it.
        """
        return attempts * self.tokens_per_iter * self.flops_per_token

    @property
    def predicted_loss(self) -> float:
        """Nats per token of the law's own tokenizer."""
        return self.prediction.loss

    @property
    def interval(self) -> dict[str, Any] | None:
        """The prediction's interval as plain data."""
        return None if self.prediction.interval is None else dataclasses.asdict(self.prediction.interval)

    @property
    def step_time_s(self) -> float | None:
        """Expected seconds of one optimizer step."""
        return None if self.step_time is None else self.step_time.total_s

    @property
    def wall_clock_s(self) -> float | None:
        """Expected seconds of all optimizer steps, without evaluations and saves."""
        return None if self.step_time is None else self.step_time.total_s * self.batch.train_iters

    def to_json(self) -> str:
        """Return the plan as indented JSON, including the derived values under DERIVED's names."""
        derived = {name: getattr(self, name) for name in DERIVED}
        data = {"format_version": PLAN_FORMAT_VERSION, **dataclasses.asdict(self), **derived}
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "RunPlan":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: not JSON, another format version, missing and unknown fields, or a derived value that was
                edited.
        """
        data = parse_json(text, where="the plan")
        if not isinstance(data, dict) or data.pop("format_version", None) != PLAN_FORMAT_VERSION:
            raise ConfigError(f"the plan is not a chinchilla-ds plan of format_version {PLAN_FORMAT_VERSION}")
        data.pop(REPORT, None)
        stated = {name: data.pop(name) for name in DERIVED if name in data}
        plan: RunPlan = build(cls, data, where="plan")
        follows = parse_json(json.dumps({name: getattr(plan, name) for name in stated}), where="the plan")
        if edited := [name for name in stated if stated[name] != follows[name]]:
            raise ConfigError(
                [
                    f"plan.{name} is {stated[name]!r:.80}, but {follows[name]!r:.80} follows from the plan's other "
                    "fields; it is for reading only: make a new plan"
                    for name in edited
                ]
            )
        return plan


DERIVED = ("tokens_per_param", "predicted_loss", "interval", "step_time_s", "wall_clock_s")
"""Properties of the plan that its JSON includes for other programs."""
REPORT = "report"
"""Key under which `chinchilla-ds plan` adds what the plan does not hold: runners-up, rejections, other laws."""


def _contradictions(plan: RunPlan) -> Iterator[str]:
    """Yield the contradictions within a plan; counts of the model are checked in budget.plan_checks."""
    if plan.device not in DEVICE_KINDS:
        yield f"device is {plan.device!r}; it must be one of {', '.join(DEVICE_KINDS)}"
    yield from plan.shape.contradictions()
    yield from plan.optimizer.contradictions()
    yield from (f"schedule: {problem}" for problem in plan.schedule.contradictions(train_iters=plan.batch.train_iters))
    lowest, peak = plan.schedule.min_learning_rate, plan.optimizer.learning_rate
    if lowest > peak:
        yield f"schedule.min_learning_rate ({lowest:g}) must be at most optimizer.learning_rate ({peak:g})"
    tokens = plan.batch.train_iters * plan.tokens_per_iter
    if plan.num_tokens != tokens:
        yield f"num_tokens is {plan.num_tokens}, but its batch and steps give {tokens} tokens"
    if not math.isclose(plan.true_flops, flops := plan.flops_per_token * plan.num_tokens, rel_tol=_ROUNDING):
        yield f"true_flops is {plan.true_flops:g}, but flops_per_token x num_tokens is {flops:g}"
    if plan.cluster is not None and plan.cluster.world_size != plan.layout.world_size:
        yield (
            f"cluster.world_size ({plan.cluster.world_size} devices) must be the layout's "
            f"{plan.layout.world_size} ranks"
        )
    if plan.memory_bytes is not None:
        yield from plan.memory_bytes.contradictions()
        stage, stages = plan.memory_bytes.pipeline_stage, plan.layout.pipeline_model_parallel_size
        if stage >= stages:
            yield f"memory_bytes.pipeline_stage is {stage}, and there are {stages} stages, counted from 0"
    if plan.step_time is not None:
        yield from plan.step_time.contradictions()
    if plan.prediction.interval is not None:
        yield from plan.prediction.interval.contradictions()
