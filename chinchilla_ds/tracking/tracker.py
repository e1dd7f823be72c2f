"""The interfaces between a run and the stores that record it.

The training loop talks to a `Tracker`, which neither blocks nor raises. A `TrackingBackend` may do both;
`tracking.background.BackgroundTracker` connects them. A run's record is kept in its folder (`tracking.jsonl`,
`tracking.record`), the source of truth: other stores, such as MLflow, follow it (`tracking.process`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class RunStatus(StrEnum):
    """The status of a run, in MLflow's terms."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    """Asked to stop before its end; it has saved."""


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """The metrics of one moment."""

    metrics: Mapping[str, float]
    step: int
    """Optimizer steps taken."""
    time_s: float
    """Seconds since the epoch when it was measured, not when it was written."""
    notes: tuple[str, ...] = ()
    """What was said about the step, such as a loss spike; for readers of the file, not for charts."""


class Tracker(Protocol):
    """The training loop's view of tracking: returns at once and never raises for a tracking failure."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, notes: Sequence[str] = ()) -> None:
        """Record numbers of one optimizer step.

        Args:
            metrics: values by name.
            step: optimizer steps taken.
            notes: what is said about the step.
        """

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings of the whole run."""

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file or folder, which must not change afterwards."""

    def close(self, status: RunStatus) -> None:
        """Write what is pending and end the run; a second call does nothing."""


class TrackingBackend(Protocol):
    """A store of runs. Called by one thread only; it may be slow and may raise. A call that raises is retried."""

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Write a batch of metrics, oldest first, or none of it."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Write settings of the whole run."""

    def log_artifact(self, path: Path) -> None:
        """Copy a file or folder."""

    def close(self, status: RunStatus) -> None:
        """End the run; nothing is called after this."""


class NullTracker:
    """Ignores everything: the tracker of ranks that do not own the loss, and the base of trackers that read files."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, notes: Sequence[str] = ()) -> None:
        """Do nothing.

        Args:
            metrics: ignored.
            step: ignored.
            notes: ignored.
        """

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing."""

    def close(self, status: RunStatus) -> None:
        """Do nothing."""


class CompositeTracker:
    """Forwards every call to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, notes: Sequence[str] = ()) -> None:
        """Pass on to every tracker, in order.

        Args:
            metrics: values by name.
            step: optimizer steps taken.
            notes: what is said about the step.
        """
        for tracker in self.trackers:
            tracker.log_metrics(metrics, step=step, notes=notes)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Pass on to every tracker, in order."""
        for tracker in self.trackers:
            tracker.log_params(params)

    def log_artifact(self, path: Path) -> None:
        """Pass on to every tracker, in order."""
        for tracker in self.trackers:
            tracker.log_artifact(path)

    def close(self, status: RunStatus) -> None:
        """Close every tracker, in order."""
        for tracker in self.trackers:
            tracker.close(status)
