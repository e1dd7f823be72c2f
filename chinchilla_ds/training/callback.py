"""What a callback sees and when it is called. The loop owns the steps; callbacks own everything else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.training.spikes import Rewind

if TYPE_CHECKING:
    from chinchilla_ds.training.stragglers import StragglerReport

__all__ = ["Callback", "EvaluationResult", "Sample", "StepResult", "TrainingState"]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Loss on the held-out part."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Text that the trained model wrote."""

    prompt: str
    """Held-out text that it was given."""
    continuation: str


@dataclass(kw_only=True)
class TrainingState:
    """The run so far; the loop writes it, callbacks read it."""

    plan: RunPlan
    run_folder: Path
    owns_loss: bool
    """Whether this rank holds the loss: last pipeline stage, tensor-parallel and data-parallel rank 0."""
    peak_flops_per_s: float | None
    """Peak of all ranks together, where the devices are known; None means MFU is not reported."""
    iteration: int = 0
    """Optimizer steps taken; skipped steps do not count."""
    data_step: int = 0
    """Global batches used up: the next step reads this one. A skipped bad batch is used up, an FP16 overflow's is not;
    the run ends at plan.batch.train_iters."""
    resumed_at: int | None = None
    """Optimizer steps that had been taken when this process went on with the run; None: it began it."""
    attempts: int = 0
    """Optimizer steps tried, skipped ones included."""
    bad_batches: int = 0
    """Batches passed over because of a loss or gradient that was no number."""
    stopped_by: str | None = None
    """Who asked the run to stop before its end; set once it has saved."""
    elapsed_s: float = 0.0
    """Training time, evaluation left out."""
    tokens_per_s: float = 0.0
    """Over the last step."""
    mfu: float | None = None
    step: StepResult | None = None
    notes: list[str] = field(default_factory=list)
    """What the last step gave cause to tell the user: a bad batch, a spike, a slow rank."""
    stragglers: "StragglerReport | None" = None
    """Of the last step, where it was measured."""
    rewind: Rewind | None = None
    """What a loss spike asks for; the loop carries it out and clears it."""
    rewinds: int = 0
    """How often this run went back because of a loss spike."""
    evaluation: EvaluationResult | None = None
    sample: Sample | None = None
    """The last one."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name to path of what the run wrote (plan, checkpoint, tokenizer, ...)."""

    @property
    def consumed_tokens(self) -> int:
        """Tokens trained on; those of skipped batches do not count."""
        return self.plan.consumed_tokens(iteration=self.iteration)

    @property
    def flops_spent(self) -> float:
        """Model FLOPs of all steps tried, skipped ones included."""
        return self.plan.flops_spent(attempts=self.attempts)


class Callback:
    """Base of all callbacks: every hook does nothing until it is overridden. Called on every rank."""

    def on_train_start(self, state: TrainingState) -> None:
        """Before the first step."""

    def on_step_end(self, state: TrainingState) -> None:
        """After every optimizer step, skipped ones included."""

    def on_evaluation_end(self, state: TrainingState) -> None:
        """After every pass over the held-out part; `state.evaluation` is fresh."""

    def on_sample(self, state: TrainingState) -> None:
        """After every sample of text; `state.sample` is fresh, and `state.artifacts["sample"]` its file."""

    def on_stop(self, state: TrainingState) -> None:
        """After the save of a run that was asked to stop before its end, in place of `on_train_end`."""

    def on_train_end(self, state: TrainingState) -> None:
        """After the last step, the last evaluation and the checkpoint."""

    def on_close(self) -> None:
        """Always, also after an exception: release what is held."""
