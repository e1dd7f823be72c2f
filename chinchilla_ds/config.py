"""RunConfig: the user's configuration. `None` means "the planner chooses"."""

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.ranges import Ge, Gt, Le, Lt
from chinchilla_ds.run_plan import (
    ADAMW,
    DEFAULT_OBJECTIVE,
    MAX_GRADIENT_CLIPPING,
    MAX_SEED,
    Amount,
    Decay,
    DecoderSwitches,
    Offload,
    Positive,
    Precision,
    Rate,
    Recompute,
    Sequences,
    Steps,
    Width,
)

DEFAULT_BUDGET_FLOPS = 5e12
"""The default budget: a few minutes on two CPU cores."""


RUN_NAME = re.compile(r"(?!data$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a run may be called: its folder's name, beside `data` with the prepared text."""
_HUB_PATH = re.compile(r"^hf:/(?!/)")


def source_name(path: Path) -> str:
    """Return a path as it was written: pathlib collapses the two slashes of hf://org/name."""
    return _HUB_PATH.sub("hf://", str(path))


HeldOutFraction: TypeAlias = Annotated[float, Gt(0), Lt(1)]


def held_out_problem(fraction: object, /, *, name: str) -> str | None:
    """Return why text cannot be held out by this fraction, which the field `name` gives; None where it can."""
    if isinstance(fraction, int | float) and 0 < fraction < 1:
        return None
    return f"`{name}` ({fraction!r} of the documents) must be between 0 and 1; nearest: 0.02"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    paths: tuple[Path, ...] = ()
    """Text, JSONL or Parquet files and folders of them; empty means the running Python's standard library source."""
    text_field: str = "text"
    """Column of JSONL and Parquet files that holds the text."""
    held_out_fraction: HeldOutFraction = 0.02
    """Share of documents kept out of training, chosen by content hash."""
    max_epochs: Positive = 1.0
    """How often the corpus, or each source of a blend, may be read; a plan that needs more is refused."""
    blend: Path | None = None
    """YAML file of weights for the named sources of a prepared corpus, instead of the corpus's own."""


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """The requested parallel layout; set by flags and by the ds_config."""

    tensor_model_parallel_size: Width = 1
    pipeline_model_parallel_size: Width = 1
    virtual_pipeline_model_parallel_size: Width = 1
    zero_stage: Annotated[int, Ge(0), Le(3)] = 0
    sequence_parallel: bool = False
    recompute: Recompute = Recompute.NONE
    offload_optimizer: Offload = Offload.NONE
    offload_param: Offload = Offload.NONE


class OnSpike(StrEnum):
    """What to do when the loss has jumped and stays high."""

    WARN = "warn"
    """Warn and continue."""
    REWIND = "rewind"
    """Go back to the last checkpoint before the spike and pass over the batches in between."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What to do when a run goes wrong; not part of the plan, so that a run may resume with other values."""

    max_bad_batches: Amount = 5
    """Batches in a row with a non-finite loss or gradients after which the run ends."""
    on_spike: OnSpike = OnSpike.WARN
    hang_timeout_s: Positive = 600.0
    """A step that takes longer than this, and much longer than those before it, counts as hung."""


@dataclass(frozen=True, kw_only=True)
class SaveInterval:
    """How often a run is saved: by time, tokens, or optimizer steps; exactly one is set."""

    seconds: Positive | None = None
    tokens: Amount | None = None
    iters: Amount | None = None

    def __post_init__(self) -> None:
        """Check that exactly one is set.

        Raises:
            ValueError: none is, or several are.
        """
        if sum(value is not None for value in (self.seconds, self.tokens, self.iters)) != 1:
            raise ValueError("one of seconds, tokens and iters must be set")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved, which checkpoints are kept, and where it starts; not part of the plan."""

    save_every: SaveInterval = field(default_factory=lambda: SaveInterval(seconds=1800.0))
    keep: Amount = 3
    """Number of newest checkpoints that are kept."""
    milestone_every: Amount | None = None
    """Checkpoints at multiples of this many steps are never removed."""
    save_in_background: bool = True
    """Whether training continues while a copy on the host is written."""
    resume: str = "latest"
    """`latest` resumes the newest unfinished run of the same command; `none` starts a new one; or a folder."""
    init_from: Path | None = None
    """A checkpoint that provides the initial weights of a new run."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DecoderSwitches):
    """The user's configuration of one run."""

    compute_budget_flops: Positive | None = None
    """Model FLOPs to spend, forward and backward. None: follows from num_params, shape or num_tokens, otherwise
    DEFAULT_BUDGET_FLOPS."""
    num_params: Positive | None = None
    """Target parameters, embeddings included. None lets the law choose."""
    num_tokens: Positive | None = None
    """Target training tokens. None lets the law or the budget choose."""
    shape: str | None = None
    """Name of a decoder in budget.shape.published.NAMED_SHAPES, instead of a search."""
    law: str | None = None
    """Scaling law: a name in budget.laws.lookup.LAWS, or a file that `chinchilla-ds fit` wrote; None is
    lookup.DEFAULT_LAW."""
    unique_tokens: Positive | None = None
    """Available distinct training tokens; beyond them the plan repeats text, by a law of the value of repetition."""
    inference_tokens: Positive | None = None
    """Tokens that the model will serve over its life; a smaller model is then trained longer."""
    seq_length: Width | None = None
    """Tokens per training sequence; None picks by budget."""
    vocab_size: Width | None = None
    """Tokenizer pieces; None: those of a prepared corpus, or by the size of the text to train on, or by budget."""
    global_batch_size: Sequences | None = None
    """Sequences per optimizer step."""
    micro_batch_size: Sequences | None = None
    """Sequences in one forward pass of one data-parallel rank."""
    learning_rate: Rate | None = None
    """Peak learning rate."""
    optimizer: PluginSpec = ADAMW
    """A name, or `module:function` of an OptimizerSpec, with its arguments."""
    weight_decay: Annotated[float, Ge(0), Le(1)] | None = None
    """Decoupled decay of matrices, in units of the learning rate; norms are not decayed."""
    beta1: Annotated[float, Ge(0), Lt(1)] | None = None
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Ge(0), Lt(1)] | None = None
    """Decay of AdamW's second moment."""
    epsilon: Annotated[float, Gt(0), Le(0.1)] | None = None
    """What AdamW adds to the root of the second moment."""
    warmup_iters: Steps | None = None
    """Optimizer steps over which the learning rate rises to its peak; 0 begins with the peak."""
    gradient_clipping: Annotated[float, Ge(0), Le(MAX_GRADIENT_CLIPPING)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    objective: PluginSpec = field(default_factory=lambda: PluginSpec(name=DEFAULT_OBJECTIVE))
    """What makes the loss: a name, or `module:Class`, and its arguments."""
    decay: Decay = Decay.COSINE
    precision: Precision | None = None
    """None means bf16 on a GPU and fp32 on a CPU."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    document_mask: bool = False
    """Whether attention stays within a document, where a sequence holds several."""
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 1234
    """Seeds weights and data order."""
    eval_interval_tokens: Amount | None = None
    """Trained tokens between evaluations; None means ten evaluations over the run."""
    sample_interval_tokens: Amount | None = None
    """Trained tokens between text samples; None samples only at the end."""
    callbacks: tuple[PluginSpec, ...] = ()
    """Callbacks from outside this package, called in this order; part of what the run is."""
    run_name: str | None = None
    """Name of the run's folder in `output`, and of the run in MLflow; None means the budget and the time."""
    output: Path = Path("runs")
    """Folder that receives runs, prepared data and the MLflow database."""


_PARTS = {"layout": LayoutConfig, "data": DataConfig, "guards": GuardConfig, "checkpoint": CheckpointConfig}


def field_path(name: str, /) -> str:
    """Return how messages name a field of RunConfig or of its parts: `micro_batch_size`, `data.max_epochs`.

    Messages put it in backquotes, with a value where they have one (`data.max_epochs=2`); the command line shows its
    flag instead.
    """
    return next((f"{part}.{name}" for part, cls in _PARTS.items() if name in {item.name for item in fields(cls)}), name)
