"""RunPlan: every number of a run, resolved and frozen. Pure data; JSON in and out.

`budget.planner.plan` makes it; everything after reads it and recomputes nothing.
"""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chinchilla_ds.errors import ConfigError, did_you_mean

PLAN_FORMAT_VERSION = 1


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
class Prediction:
    """What the scaling law says this run will reach."""

    law: str
    """Name in budget.scaling_laws.LAWS."""
    loss: float
    """Predicted final loss of the discrete shape and token count, nats per token of the law's own tokenizer."""
    optimal_num_params: float
    """N of the continuous optimum for the budget, in the law's convention."""
    optimal_num_tokens: float
    optimal_loss: float


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything a run needs to know, resolved."""

    compute_budget_flops: float
    num_params: int
    """Parameters of the decoder, embeddings included."""
    num_tokens: int
    """train_iters x global_batch_size x seq_length."""
    train_flops: float
    """Model FLOPs of the whole run by the exact count of this decoder (no recomputation)."""
    flops_per_token: float
    """Model FLOPs per trained token, forward and backward."""
    shape: ModelShape
    batch: BatchPlan
    layout: ParallelLayout
    precision: Precision
    optimizer: OptimizerPlan
    schedule: Schedule
    prediction: Prediction
    seed: int
    eval_interval_iters: int
    """Optimizer steps between evaluations on the held-out part."""
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

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps({"format_version": PLAN_FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunPlan":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: not JSON, another format version, or missing and unknown fields.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the plan is not JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format_version", None) != PLAN_FORMAT_VERSION:
            raise ConfigError(f"the plan is not a chinchilla-ds plan of format_version {PLAN_FORMAT_VERSION}")
        plan: RunPlan = _build(cls, data, "plan")
        return plan


_PARTS: dict[str, Any] = {
    "shape": ModelShape,
    "batch": BatchPlan,
    "layout": ParallelLayout,
    "optimizer": OptimizerPlan,
    "schedule": Schedule,
    "prediction": Prediction,
    "precision": Precision,
    "recompute": Recompute,
    "offload_optimizer": Offload,
    "offload_param": Offload,
    "decay": Decay,
}


def _build(cls: Any, data: Any, where: str) -> Any:
    """Build dataclass `cls` from plain data, naming every missing, unknown and mistyped field at once."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be a JSON object, not {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems = [f"{where}.{name} is not a field{did_you_mean(name, fields)}" for name in data.keys() - fields.keys()]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in data:
            if field.default is dataclasses.MISSING:
                problems.append(f"{where}.{name} is missing")
            continue
        try:
            values[name] = _convert(field, data[name], f"{where}.{name}")
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(sorted(problems))
    return cls(**values)


def _convert(field: "dataclasses.Field[Any]", value: Any, where: str) -> Any:
    part = _PARTS.get(field.name)
    if part is not None and dataclasses.is_dataclass(part):
        return _build(part, value, where)
    if part is not None:
        try:
            return part(value)
        except ValueError:
            allowed = ", ".join(str(choice) for choice in part)
            raise ConfigError(f"{where} is {value!r}; it must be one of {allowed}") from None
    if field.name == "reasons" and isinstance(value, list):
        return tuple(str(item) for item in value)
    wanted = field.type
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and type(value) is not wanted:
        raise ConfigError(f"{where} is {value!r}; it must be of type {wanted.__name__}")
    return value
