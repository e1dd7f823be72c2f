"""metrics.jsonl: the run's numbers as one JSON object per line, readable while it runs and without any tool.

Together with tracking.json it is the source of truth about a run: other stores of runs are synchronised with it.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chinchilla_ds.files import write_durably
from chinchilla_ds.tracking.background import BackgroundTracker
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.metrics_file import METRICS_FILE, NOTES, MetricsReader, describe_skipped
from chinchilla_ds.tracking.record import load_or_begin
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus

_STEP_METRIC, _EVALUATION_METRIC, _SKIPPED_METRIC = "train/loss", "held_out/loss", "skipped_steps"
"""Every optimizer step taken logs the first, every evaluation the second; a skipped step only the third."""
_SYNC_INTERVAL_S = 1.0
"""Interval at which lines are flushed to the disk, against a power cut."""

_logger = logging.getLogger(__name__)


class JsonlBackend:
    """Appends one object per logged moment: `step`, `time` (seconds since the epoch) and the metrics.

    What was said about a step, such as a loss spike, is the list `notes` on its line. An evaluation has its own line,
    with the step at which it was made. JSON has neither NaN nor infinity: they are
    the strings "NaN", "Infinity" and "-Infinity". A batch is written completely or not at all, and may be retried.
    """

    def __init__(self, *, path: Path, followed_by: MlflowDestination | None = None) -> None:
        """Open a run's record.

        Args:
            path: The metrics' file, in the run's folder; created if it does not exist.
            followed_by: The store that follows this record; noted in it for a later `track`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        record = load_or_begin(path.parent)
        if followed_by is not None:
            followed_by.noted_in(record).save(path.parent)
        self._is_continued = path.is_file()
        self._descriptor: int | None = None
        self._synced_s = 0.0

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Append the records.

        A resumed run repeats the steps after its checkpoint: their old lines are dropped.
        """
        if self._is_continued and records:
            _cut(self._path, before=records[0])
            self._is_continued = False
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _append(self._descriptor, "".join(_line(record) for record in records).encode())
        if time.monotonic() - self._synced_s >= _SYNC_INTERVAL_S:
            os.fsync(self._descriptor)
            self._synced_s = time.monotonic()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings in tracking.json."""
        load_or_begin(self._path.parent).with_params(params).save(self._path.parent)

    def log_artifact(self, path: Path) -> None:
        """Record the file's place in tracking.json."""
        load_or_begin(self._path.parent).with_artifact(path, run_folder=self._path.parent).save(self._path.parent)

    def close(self, status: RunStatus) -> None:
        """Flush to the disk and close the file."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)


def jsonl_tracker(*, run_folder: Path, followed_by: MlflowDestination | None = None) -> BackgroundTracker:
    """Return a tracker that writes `metrics.jsonl` and `tracking.json` in the run's folder; see `JsonlBackend`.

    Lines are not batched: a step within a checkpoint should have its line, however the process ends.
    """
    return BackgroundTracker(
        lambda: JsonlBackend(path=run_folder / METRICS_FILE, followed_by=followed_by),
        name=METRICS_FILE,
        batch_interval_s=0.0,
    )


def _append(descriptor: int, content: bytes) -> None:
    """Append all of `content`, or leave the file unchanged: a full disk may accept part of a line.

    Raises:
        OSError: it could not be written.
    """
    size = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _cut(path: Path, *, before: MetricRecord) -> None:
    """Keep the complete lines of moments before a record's, and name those that cannot be read."""
    reader = MetricsReader(path)
    lines = [line + b"\n" for line, record in reader.lines(is_ended=True) if _place(record) < _place(before)]
    if reader.skipped:
        _logger.warning("%s", describe_skipped(path, reader.skipped))
    write_durably(path, b"".join(lines))


def _place(record: MetricRecord) -> tuple[int, int, float]:
    """Return the position of a moment in a run: within a step, the step, its evaluation, then skipped attempts."""
    if _STEP_METRIC in record.metrics:
        return record.step, 0, 0.0
    if _EVALUATION_METRIC in record.metrics:
        return record.step, 1, 0.0
    return record.step, 2, record.metrics.get(_SKIPPED_METRIC, 0.0)


def _line(record: MetricRecord) -> str:
    metrics = {key: value if math.isfinite(value) else _non_finite(value) for key, value in record.metrics.items()}
    moment = {"step": record.step, "time": round(record.time_s, 3), **metrics}
    notes = {NOTES: list(record.notes)} if record.notes else {}
    return json.dumps({**moment, **notes}, allow_nan=False) + "\n"


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
