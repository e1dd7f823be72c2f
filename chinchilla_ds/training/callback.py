"""The interface of callbacks, and when they are called. The loop owns the steps; callbacks own everything else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.training.spikes import Rewind

if TYPE_CHECKING:
    from chinchilla_ds.budget.laws.curves.departure import BandDeparture
    from chinchilla_ds.budget.laws.curves.outlook import OutlookPoint
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
    """The held-out text given to the model."""
    continuation: str


@dataclass(kw_only=True)
class TrainingState:
    """The run so far; the loop writes it, callbacks read it."""

    plan: RunPlan
    run_folder: Path
    owns_loss: bool
    """Whether this rank holds the loss: last pipeline stage, tensor-parallel and data-parallel rank 0."""
    peak_flops_per_s: float | None
    """Peak of all ranks together, if the devices are known; None means MFU is not reported."""
    iteration: int = 0
    """Optimizer steps taken; skipped steps do not count."""
    data_step: int = 0
    """Global batches consumed: the next step reads this one. A skipped bad batch is consumed, an FP16 overflow's is
    not; the run ends at plan.batch.train_iters."""
    resumed_at: int | None = None
    """Optimizer steps already taken when this process resumed the run; None: it started it."""
    attempts: int = 0
    """Optimizer steps tried, skipped ones included."""
    bad_batches: int = 0
    """Batches passed over because of a non-finite loss or gradient."""
    stopped_by: str | None = None
    """Who asked the run to stop before its end; set once it has saved."""
    elapsed_s: float = 0.0
    """Training time, evaluation left out."""
    tokens_per_s: float = 0.0
    """Speed over the last step."""
    mfu: float | None = None
    step: StepResult | None = None
    notes: tuple[str, ...] = ()
    """Messages of the last step for the user: a bad batch, a spike, a slow rank, a loss that leaves its band."""
    expected: "OutlookPoint | None" = None
    """Loss and 95 % band that the run's own beginning predicted for the last step, on the rank that owns the loss; None
    before there is a fit."""
    departure: "BandDeparture | None" = None
    """The last time that the loss was above that band."""
    departures: int = 0
    """How often it was, in this process."""
    stragglers: "StragglerReport | None" = None
    """The report of the last step, if it was measured."""
    rewind: Rewind | None = None
    """The rewind requested after a loss spike; the loop carries it out and clears it."""
    rewinds: int = 0
    """How often this run went back because of a loss spike."""
    evaluation: EvaluationResult | None = None
    sample: Sample | None = None
    """The last sample."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name to path of what the run wrote (plan, checkpoint, tokenizer, ...); callbacks may add to it."""

    @property
    def consumed_tokens(self) -> int:
        """Tokens trained on; those of skipped batches do not count."""
        return self.plan.consumed_tokens(iteration=self.iteration)

    @property
    def flops_spent(self) -> float:
        """Model FLOPs of all steps tried, skipped ones included."""
        return self.plan.flops_spent(attempts=self.attempts)

    @contextmanager
    def read_by(self, callback: "Callback") -> Iterator[None]:
        """Refuse writes within this block, in which a callback uses the state.

        Raises:
            ConfigError: the callback would change a field, or a value in one.
        """
        self.__dict__["_reader"] = reader = name_of(callback)
        scalars = None if self.step is None else dict(self.step.scalars)
        try:
            yield
        except FrozenInstanceError as error:
            raise ConfigError(f"callback {reader}: {error}; {_READ_ONLY}") from error
        finally:
            del self.__dict__["_reader"]
        if self.step is not None and str(self.step.scalars) != str(scalars):  # as text: NaN equals itself there
            raise ConfigError(f"callback {reader} has changed state.step.scalars; {_READ_ONLY}")

    def __setattr__(self, name: str, value: object) -> None:
        if (reader := self.__dict__.get("_reader")) is not None:
            raise ConfigError(f"callback {reader} would set state.{name}; {_READ_ONLY}")
        super().__setattr__(name, value)


_READ_ONLY = "callbacks read the training state, which only the loop writes; keep your own values in the callback"


class Callback:
    """Base of all callbacks: every hook does nothing until it is overridden.

    Hooks are called on every rank, in this order, each for all callbacks one after the other: ours first, then those
    from outside in the given order.

        on_train_start
        on_step_end             after every step; then, if they are due,
            on_evaluation_end
            on_sample
            (a checkpoint is saved, with `state_dict`)
        on_evaluation_end       at the end, over the whole held-out part
        on_sample
        on_train_end            or `on_stop` instead of these three, if the run was asked to stop
        on_close

    A callback may read all of `state`, add to `state.artifacts`, write its own files and raise to end the run. It
    may change nothing that training depends on: the state refuses writes, and the results in it are frozen.
    Hooks must not call collectives, unless every rank calls them.
    """

    def on_train_start(self, state: TrainingState) -> None:
        """Before the first step."""

    def on_step_end(self, state: TrainingState) -> None:
        """After every optimizer step, skipped ones included."""

    def on_evaluation_end(self, state: TrainingState) -> None:
        """After every pass over the held-out part; `state.evaluation` is fresh."""

    def on_sample(self, state: TrainingState) -> None:
        """After every sample of text; `state.sample` is fresh, and `state.artifacts["sample"]` its file."""

    def on_stop(self, state: TrainingState) -> None:
        """After the save of a run that was asked to stop before its end, instead of `on_train_end`."""

    def on_train_end(self, state: TrainingState) -> None:
        """After the last step, the last evaluation and the checkpoint."""

    def on_close(self) -> None:
        """Always, also after an exception: release what is held."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON; called on every rank at each save, and rank 0's is saved.

        Losses and counts are the same on every rank, and so is a state derived from them.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, on every rank; before `on_train_start`, and after a rewind."""


def name_of(callback: Callback, /) -> str:
    """Return a callback's class as `module:Class`."""
    return f"{type(callback).__module__}:{type(callback).__qualname__}"
