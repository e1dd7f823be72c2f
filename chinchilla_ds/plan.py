"""RunPlan: every number of a run, resolved and frozen. Pure data; JSON in and out.

`budget.planner.plan` makes it; everything after reads it and recomputes nothing.
"""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.structured import build, parse_json

PLAN_FORMAT_VERSION = 2


class Precision(StrEnum):
    """Compute precision. BF16 and FP16 keep FP32 master weights in the optimizer."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Recompute(StrEnum):
    """Activation checkpointing: what the backward pass computes again instead of keeping."""

    NONE = "none"
    SELECTIVE = "selective"
    """Core attention only."""
    FULL = "full"
    """Every transformer layer, from its input."""


class Offload(StrEnum):
    """Where optimizer states or parameters live when they are not in use."""

    NONE = "none"
    CPU = "cpu"
    NVME = "nvme"


class Decay(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    WSD = "wsd"
    """Warm-up, stable, then a linear decay."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The discrete decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no biases."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Width of each of the gate and up projections."""
    num_attention_heads: int
    num_query_groups: int
    """Key/value heads; equal to num_attention_heads for plain multi-head attention."""
    kv_channels: int
    """Width of one attention head."""
    vocab_size: int
    """Pieces asked of the tokenizer."""
    padded_vocab_size: int
    """Rows of the embedding table: vocab_size rounded up to a multiple of 128."""
    seq_length: int
    """Tokens per training sequence."""
    tied_embeddings: bool = False
    """Whether the output projection is the embedding table."""
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    """Standard deviation of the initial weights; projections into the residual stream divide it by sqrt(2 layers)."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the token budget is cut into optimizer steps."""

    global_batch_size: int
    """Sequences per optimizer step, over all data-parallel ranks."""
    micro_batch_size: int
    """Sequences in one forward pass of one data-parallel rank."""
    gradient_accumulation_steps: int
    """Micro-batches per optimizer step and data-parallel rank."""
    train_iters: int
    """Optimizer steps of the whole run."""


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """How the model and its training state are spread over world_size ranks."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    """Model chunks per pipeline stage; above 1 the schedule is interleaved 1F1B."""
    data_parallel_size: int = 1
    zero_stage: int = 0
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
    """AdamW with decoupled decay; norms are not decayed (the decoder has no biases)."""

    learning_rate: float
    """Peak learning rate."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over optimizer steps that were really taken."""

    decay: Decay = Decay.COSINE
    warmup_iters: int
    decay_iters: int
    """Steps of the decay phase: cosine, all after warm-up; WSD, the last ones."""
    min_learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the optimum of the budget lies with probability `level`, by the uncertainty of the law's own fit.

    Leaves out what another law, another text or another tokenizer would say.
    """

    level: float
    """Probability, such as 0.8: the 10th to the 90th percentile."""
    num_params: tuple[float, float]
    num_tokens: tuple[float, float]
    tokens_per_param: tuple[float, float]
    loss: tuple[float, float]
    """Of the predicted loss of this plan's N and D, nats per token."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the scaling law says this run will reach."""

    law: str
    """What chose N and D: a name in budget.scaling_laws.LAWS, or of a fitted law."""
    loss_law: str
    """What predicts the loss: the same law, or the default one where that says only where the optimum lies."""
    loss: float
    """Predicted final loss of the discrete shape and token count, nats per token of loss_law's own tokenizer."""
    optimal_num_params: float
    """N of the continuous optimum: the shape varied without steps, FLOPs counted as those of our decoder."""
    optimal_num_tokens: float
    optimal_loss: float
    interval: Interval | None = None
    """None where the law's authors give no uncertainty that can be used."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines that a plan is laid out for."""

    device: str
    """Name in budget.hardware.DEVICES, or in a hardware file."""
    world_size: int
    """All devices."""
    devices_per_node: int
    """Devices joined by the fast link (NVLink, Infinity Fabric)."""
    device_memory_bytes: int
    """Of one device."""


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Peak memory of the fullest rank, in bytes."""

    weights: int
    """Parameters in compute precision that stay on the device."""
    gradients: int
    optimizer: int
    """FP32 master weights and Adam's two moments."""
    activations: int
    """What the backward pass keeps of all micro-batches in flight, without the logits."""
    logits: int
    """Output logits, and the copies that the loss makes of them; the last pipeline stage's."""
    buffers: int
    """Communication buckets, gathered parameters, and copies that one step makes."""
    margin: int
    """Fragmentation of the allocator, and what the device's context and libraries take."""
    total: int
    """All of the above."""
    host: int = 0
    """CPU memory of offloaded states, of this rank."""
    nvme: int = 0
    """NVMe space of offloaded states, of this rank."""
    pipeline_stage: int = 0
    """The stage that this rank belongs to."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Expected time of one optimizer step, in seconds, and the rates that follow from it."""

    compute_s: float
    """Matmuls and attention, recomputation included, at the rate the device is expected to reach."""
    tensor_parallel_s: float
    """Collectives of tensor and sequence parallelism, which nothing hides."""
    pipeline_s: float
    """Idle time of the pipeline (its bubble), and sends between stages."""
    data_parallel_s: float
    """What ZeRO's and data parallelism's collectives add beyond what the computation hides."""
    optimizer_s: float
    """AdamW's step, and transfers of offloaded states."""
    total_s: float
    """All of the above."""
    mfu: float
    """Model FLOPs of the step / (total_s x world_size x peak)."""
    hfu: float
    """The same with recomputation counted."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything a run needs to know, resolved."""

    compute_budget_flops: float
    num_params: int
    """Parameters of the decoder, embeddings included."""
    num_tokens: int
    """train_iters x global_batch_size x seq_length."""
    true_flops: float
    """Model FLOPs of the whole run by the exact count of this decoder (no recomputation)."""
    flops_per_token: float
    """Model FLOPs per trained token, forward and backward."""
    shape: ModelShape
    batch: BatchPlan
    layout: ParallelLayout
    device: str
    """Kind of device that it was made for, "cpu" or "cuda": decides default precision, micro-batch and memory."""
    precision: Precision
    optimizer: OptimizerPlan
    schedule: Schedule
    prediction: Prediction
    seed: int
    eval_interval_iters: int
    """Optimizer steps between evaluations on the held-out part."""
    document_mask: bool = False
    """Whether attention stays within a document, where a sequence holds several. FLOPs are counted without it."""
    unique_tokens: int | None = None
    """Distinct tokens there are; num_tokens beyond them are repetitions. None: as many as num_tokens."""
    cluster: Cluster | None = None
    """None: no device was named."""
    memory_bytes: MemoryBytes | None = None
    """Expected peak of the fullest rank; None: not estimated."""
    step_time: StepTime | None = None
    """Expected time of a step; None: the device's rates are not known."""
    reasons: tuple[str, ...] = ()
    """One sentence per choice, with its source."""

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.num_tokens / self.num_params

    @property
    def tokens_per_iter(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch.global_batch_size * self.shape.seq_length

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
        """Return the plan as indented JSON, with what follows from its fields written out under DERIVED's names."""
        derived = {name: getattr(self, name) for name in DERIVED}
        data = {"format_version": PLAN_FORMAT_VERSION, **dataclasses.asdict(self), **derived}
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunPlan":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: not JSON, another format version, missing and unknown fields, or a derived value that was
                edited.
        """
        data = parse_json(text, where="the plan")
        if not isinstance(data, dict) or data.pop("format_version", None) != PLAN_FORMAT_VERSION:
            raise ConfigError(f"the plan is not a chinchilla-ds plan of format_version {PLAN_FORMAT_VERSION}")
        data.pop(REPORT, None)
        told = {name: data.pop(name) for name in DERIVED if name in data}
        plan: RunPlan = build(cls, data, where="plan")
        follows = parse_json(json.dumps({name: getattr(plan, name) for name in told}), where="the plan")
        if edited := [name for name in told if told[name] != follows[name]]:
            raise ConfigError(
                [
                    f"plan.{name} is {told[name]!r}, but {follows[name]!r} follows from the plan's other fields; "
                    "it is there to be read: make the plan anew"
                    for name in edited
                ]
            )
        return plan


DERIVED = ("tokens_per_param", "predicted_loss", "interval", "step_time_s", "wall_clock_s")
"""Properties of the plan that its JSON spells out for other programs."""
REPORT = "report"
"""Key under which `chinchilla-ds plan --json` adds what the plan does not hold: runners-up, rejections, other laws."""
