"""metrics.jsonl: the run's numbers as one JSON object per line, readable while it runs and without any tool."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chinchilla_ds.tracking.background import BackgroundTracker
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus

METRICS_FILE = "metrics.jsonl"
_STEP_METRIC = "train/loss"
"""Every optimizer step that was taken logs it, and no evaluation does."""


class JsonlBackend:
    """Appends one object per logged moment: `step`, `time` (seconds since the epoch) and the metrics.

    An evaluation stands on its own line, with the step it was made at. JSON knows neither NaN nor infinity: null.
    """

    def __init__(self, *, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._is_continued = path.is_file()
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Append the records and flush them to the operating system.

        A run that is continued takes steps again that came after its checkpoint: their old lines are dropped.
        """
        if self._is_continued and records:
            self._is_continued = False
            self._file.close()
            _cut(self._path, before=records[0])
            self._file = self._path.open("a", encoding="utf-8")
        self._file.writelines(_line(record) for record in records)
        self._file.flush()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing: the plan stands beside this file."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing: the run's files are in the run's folder already."""

    def close(self, status: RunStatus) -> None:
        """Close the file."""
        self._file.close()


def jsonl_tracker(*, run_folder: Path) -> BackgroundTracker:
    """Return a tracker that writes `metrics.jsonl` in the run's folder.

    Lines do not gather: a step that a checkpoint holds should have its line, however the process ends.
    """
    return BackgroundTracker(
        lambda: JsonlBackend(path=run_folder / METRICS_FILE), name=METRICS_FILE, batch_interval_s=0.0
    )


def read_metrics(path: Path, /) -> Iterator[MetricRecord]:
    """Yield what a run has written so far; a last line that is cut off ends it."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            moment = json.loads(line)
            step, time_s = moment.pop("step"), moment.pop("time")
            metrics = {key: value for key, value in moment.items() if value is not None}
            yield MetricRecord(metrics=metrics, step=step, time_s=time_s)


def _cut(path: Path, *, before: MetricRecord) -> None:
    """Keep the whole lines of moments before a record's; at one step the evaluation comes after the step itself."""
    is_step = _STEP_METRIC in before.metrics
    aside = path.with_name(f".{path.name}.partial")
    with path.open(encoding="utf-8") as old, aside.open("w", encoding="utf-8") as new:
        for line in old:
            if not line.endswith("\n"):  # the process was killed while it wrote
                break
            moment = json.loads(line)
            place = (moment["step"], _STEP_METRIC not in moment)
            if place < (before.step, not is_step):
                new.write(line)
    aside.replace(path)


def _line(record: MetricRecord) -> str:
    metrics = {key: value if math.isfinite(value) else None for key, value in record.metrics.items()}
    return json.dumps({"step": record.step, "time": round(record.time_s, 3), **metrics}) + "\n"
