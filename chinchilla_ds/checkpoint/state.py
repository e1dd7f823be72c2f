"""A checkpoint's content apart from its tensors: the run's state, and what it was trained with. JSON in and out."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from chinchilla_ds.checkpoint.folder import PLAN_NAME
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.ranges import Ge, Le
from chinchilla_ds.run_plan import FUNCTION_FIELDS, ModelShape, RunPlan
from chinchilla_ds.structured import build, parse_json, read_bytes

LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Fields of FP16's dynamic loss scale, by DeepSpeed's names."""
Count = Annotated[int, Ge(0), Le(10**18)]


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """The state of a run when it was saved."""

    iteration: Count
    """Optimizer steps taken."""
    data_step: Count
    """Global batches consumed: those of steps taken, and those that were skipped permanently."""
    attempts: Count
    """Steps tried, skipped ones included."""
    bad_batches: Count = 0
    """Batches passed over because of a loss or gradient that was not finite."""
    rewinds: Count = 0
    """How often the run went back because of a loss spike."""
    optimizer_step: Count = 0
    """The optimizer's own step count, as for AdamW's bias correction; filled in by the engine."""
    elapsed_s: Annotated[float, Ge(0), Le(1e18)]
    """Training time so far."""
    loss_scaler: dict[str, int | float] = field(default_factory=dict)
    """FP16's dynamic loss scale and its counters; empty in other precisions."""
    objective_state: dict[str, Any] = field(default_factory=dict)
    """The objective's state besides parameters, by its own names; filled in by the engine."""
    tokenizer_sha256: str | None = None
    data_key: str | None = None
    """Hash of the prepared text's manifest."""
    world_size: Count = 0
    """Ranks that wrote it; the engine fills it in."""
    run_name: str | None = None
    complete: bool = False
    """Whether the run had reached its end."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of chinchilla-ds, torch, deepspeed, megatron-core and Python."""
    loss: float | None = None
    """Loss of the last step, nats per token; None if it was non-finite."""
    held_out_loss: float | None = None
    """Loss of the last evaluation, nats per token; None if it was non-finite."""
    held_out_bits_per_byte: float | None = None
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of the callbacks from outside, by name and arguments; those that keep none have an empty one."""

    def __post_init__(self) -> None:
        """Check the counts against one another.

        Raises:
            ValueError: every contradiction, one a line.
        """
        if problems := list(self._contradictions()):
            raise ValueError("\n".join(problems))

    def _contradictions(self) -> Iterator[str]:
        for name in ("data_step", "attempts"):
            if (count := getattr(self, name)) < self.iteration:
                yield f"{name} is {count}, and {self.iteration} steps were taken (iteration)"
        if unknown := sorted(self.loss_scaler.keys() - set(LOSS_SCALER_FIELDS)):
            yield f"loss_scaler has {', '.join(unknown)}; it may have {', '.join(LOSS_SCALER_FIELDS)}"

    def to_json(self) -> str:
        """Return indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> "CheckpointState":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: not JSON, or other fields; the message names `where`.
        """
        data = parse_json(text, where=where, error=CheckpointError)
        state: CheckpointState = build(cls, data, where=where, error=CheckpointError)
        return state

    @classmethod
    def load(cls, path: Path) -> "CheckpointState":
        """Read it from a file, and raise as `from_json` does."""
        return cls.from_json(read_bytes(path, what="state", error=CheckpointError), where=f"state {path}")


def plan_of_checkpoint(checkpoint: Path, /) -> RunPlan:
    """Return the plan that a checkpoint holds.

    Raises:
        CheckpointError: missing, not JSON, or not a plan; the message names the file.
    """
    path = checkpoint / PLAN_NAME
    content = read_bytes(path, what="plan", error=CheckpointError)
    try:
        return RunPlan.from_json(content)
    except ConfigError as error:
        raise CheckpointError([f"plan {path}: {problem}" for problem in error.problems]) from None


def state_problems(state: CheckpointState, plan: RunPlan) -> Iterator[str]:
    """Yield the counts of a run that contradict the plan in the same checkpoint."""
    if state.data_step > plan.batch.train_iters:
        yield f"data_step is {state.data_step}, and its plan has {plan.batch.train_iters} batches (batch.train_iters)"
    if state.optimizer_step > state.attempts + 1:  # DeepSpeed may take a step of its own before the first
        yield f"optimizer_step is {state.optimizer_step}, and {state.attempts} steps were tried (attempts)"


def objective_problems(saved: RunPlan, wanted: RunPlan, *, checkpoint: Path) -> list[str]:
    """Return why a run cannot be resumed: it was trained with a different objective from the plan's.

    Args:
        saved: the checkpoint's plan.
        wanted: the plan of the run to resume.
        checkpoint: the checkpoint, for messages.
    """
    if saved.objective == wanted.objective:
        return []
    return [
        f"the checkpoint {checkpoint} was trained with the objective {saved.objective}, and the plan's is "
        f"{wanted.objective}: resume with `objective={saved.objective}`, or begin a new run from its weights with "
        f"`checkpoint.init_from={checkpoint}`"
    ]


def shape_problems(saved: ModelShape, wanted: ModelShape, *, checkpoint: Path) -> list[str]:
    """Return where a checkpoint's decoder differs from a plan's, so that its weights would compute something else.

    The tensors' sizes do not show it: another rotary base, norm epsilon or split into heads fits them all.

    Args:
        saved: the checkpoint's shape.
        wanted: the plan's shape.
        checkpoint: the checkpoint, for messages.
    """
    different = [name for name in FUNCTION_FIELDS if getattr(saved, name) != getattr(wanted, name)]
    problems = [
        f"shape.{name} is {getattr(saved, name)} in the checkpoint {checkpoint} and {getattr(wanted, name)} in the plan"
        for name in different
    ]
    if problems:
        problems[-1] += (
            f"; its weights belong to its own shape: give a plan of that shape, such as `plan={checkpoint / PLAN_NAME}`"
        )
    return problems
