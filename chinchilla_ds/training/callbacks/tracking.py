"""TrackingCallback: turns the training state into metrics, on the rank that owns the loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from chinchilla_ds.budget.prediction import why_no_prediction
from chinchilla_ds.tracking.environment import write_environment
from chinchilla_ds.tracking.record import plan_params
from chinchilla_ds.tracking.tracker import RunStatus, Tracker
from chinchilla_ds.training.callback import Callback, TrainingState

DEFAULT_ARTIFACTS = ("plan", "ds_config", "tokenizer", "blend", "environment")
"""Names in `state.artifacts` that are copied to the tracker; samples are copied as they appear, and checkpoints are too
large."""
EXCESS, SINCE = "loss_above_band", "loss_above_band_since"
"""Metrics of a step whose loss lies above its band; a resumed run reads them."""


class TrackingCallback(Callback):
    """Logs every step and evaluation, the plan's numbers as parameters, and small files as artifacts.

    Writes `environment.json` into the run's folder. The run counts as failed unless training reached its end.
    """

    def __init__(
        self,
        *,
        tracker: Tracker,
        device_type: str,
        params: Mapping[str, object] | None = None,
        artifact_names: Sequence[str] = DEFAULT_ARTIFACTS,
    ) -> None:
        """Feed a tracker.

        Args:
            tracker: the destination; on ranks that do not own the loss it is closed and never written to.
            device_type: "cuda" reports the allocator's peak, "cpu" this process's resident memory.
            params: settings to log beside the plan's numbers.
            artifact_names: keys of `state.artifacts` to copy, at the start or, if they appear later, at the end.
        """
        self._tracker, self._params = tracker, dict(params or {})
        self._read_memory = _peak_cuda_bytes if device_type == "cuda" else _resident_bytes
        self._artifact_names = tuple(artifact_names)
        self._copied: set[str] = set()
        self._status = RunStatus.FAILED

    def on_train_start(self, state: TrainingState) -> None:
        """Log the plan and the files that exist already."""
        if not state.owns_loss:
            return
        state.artifacts["environment"] = str(write_environment(state.run_folder))
        self._tracker.log_params({**plan_params(state.plan), **self._params})
        self._copy_artifacts(state)

    def on_step_end(self, state: TrainingState) -> None:
        """Log the step."""
        if state.owns_loss:
            metrics = step_metrics(state, read_memory=self._read_memory)
            self._tracker.log_metrics(metrics, step=state.iteration, notes=state.notes)

    def on_evaluation_end(self, state: TrainingState) -> None:
        """Log the held-out loss."""
        if state.owns_loss and state.evaluation is not None:
            result = state.evaluation
            metrics = {
                "held_out/loss": result.loss,
                "held_out/loss_per_byte": result.bits_per_byte * math.log(2),
                "held_out/bits_per_byte": result.bits_per_byte,
            }
            self._tracker.log_metrics(metrics, step=state.iteration)

    def on_sample(self, state: TrainingState) -> None:
        """Copy the text."""
        if state.owns_loss:
            self._tracker.log_artifact(Path(state.artifacts["sample"]))

    def on_stop(self, state: TrainingState) -> None:
        """Mark the run as stopped."""
        self._status = RunStatus.KILLED

    def on_train_end(self, state: TrainingState) -> None:
        """Log the files that were written since, and mark the run as finished."""
        if state.owns_loss:
            self._copy_artifacts(state)
        self._status = RunStatus.FINISHED

    def on_close(self) -> None:
        """Write what is pending and end the run."""
        self._tracker.close(self._status)

    def _copy_artifacts(self, state: TrainingState) -> None:
        for name in self._artifact_names:
            if name in state.artifacts and name not in self._copied:
                self._copied.add(name)
                self._tracker.log_artifact(Path(state.artifacts[name]))


def step_metrics(state: TrainingState, *, read_memory: Callable[[], int]) -> dict[str, float]:
    """Return the metrics of the last step; for a skipped one only the loss scale and the counts of skipped steps.

    `flops` is logged with `train/loss` at every step, so that either can be the other's axis. `predicted_loss` is where
    the scaling law expects the run to end, if it says anything about such a run, until the run's own beginning can be
    fitted: from then on it is what that predicts for the step, between `predicted_loss_low` and
    `predicted_loss_high`. `train/loss` is the loss by which text is measured; an objective that optimises something
    else adds `train/objective_loss`, and its scalars as `objective/NAME`.
    """
    step = state.step
    if step is None:
        return {}
    skipped = {
        "loss_scale": step.loss_scale,
        "skipped_steps": float(state.attempts - state.iteration),
        "bad_batches": float(state.bad_batches),
    }
    if step.skipped:
        return skipped
    metrics = {
        "train/loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": float(state.consumed_tokens),
        "flops": state.flops_spent,
        "tokens_per_s": state.tokens_per_s,
        "memory_bytes": float(read_memory()),
    }
    if (expected := state.expected) is not None:
        metrics |= {
            "predicted_loss_low": expected.low,
            "predicted_loss": expected.loss,
            "predicted_loss_high": expected.high,
        }
    elif why_no_prediction(state.plan) is None:
        metrics["predicted_loss"] = state.plan.predicted_loss
    if state.departure is not None and state.departure.until is None:
        metrics |= {EXCESS: state.departure.excess, SINCE: float(state.departure.since)}
    if step.objective_loss is not None:
        metrics["train/objective_loss"] = step.objective_loss
    metrics |= {f"objective/{name}": value for name, value in step.scalars.items()}
    if state.mfu is not None:
        metrics["mfu"] = state.mfu
    if state.stragglers is not None:
        metrics |= {
            "straggler/slowest_rank": float(state.stragglers.slowest_rank),
            "straggler/ratio": state.stragglers.ratio,
        }
    return metrics | skipped


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _peak_cuda_bytes() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated())
