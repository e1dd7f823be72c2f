"""A run that records itself as training does, and what MLflow's database has of it, read without MLflow."""

import contextlib
import json
import math
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.jsonl import JsonlBackend
from chinchilla_ds.tracking.mlflow import MlflowMirror
from chinchilla_ds.tracking.mlflow_session import mlflow_session
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus

START_S = 1.7e9
Value = tuple[str, int, float | None]
"""Name, step, value; None for NaN."""


def moment(step: int, *, loss: float | None = None, time_s: float | None = None) -> MetricRecord:
    metrics = {"train/loss": 10.0 / step if loss is None else loss, "flops": 1e9 * step, "grad_norm": 1.0 + step}
    return MetricRecord(metrics=metrics, step=step, time_s=START_S + step if time_s is None else time_s)


class Recorded:
    """One run's folder, its writer and its mirror."""

    def __init__(self, output: Path, *, name: str = "tiny", uri: str | None = None) -> None:
        self.folder = output / name
        self.destination = MlflowDestination.resolve(output=output, run_name=name, tracking_uri=uri)
        self.start()

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def database(self) -> Path:
        return self.folder.parent / "mlflow.db"

    def start(self) -> None:
        """Begin, or go on, with processes of its own."""
        self.backend = JsonlBackend(path=self.metrics)
        self.backend.log_params({"shape.num_layers": 4, "layout.zero_stage": 1})
        (self.folder / "plan.txt").write_text("a plan")
        self.backend.log_artifact(self.folder / "plan.txt")
        self.mirror = MlflowMirror(run_folder=self.folder, destination=self.destination)

    def write(self, steps: Iterable[int], **moments: Any) -> None:
        self.backend.write([moment(step, **moments) for step in steps])

    def mirrored(self, status: RunStatus | None = RunStatus.RUNNING) -> Exception | None:
        """Bring MLflow up as the following process does, and return what that raised."""
        with mlflow_session(self.destination.tracking_uri):
            try:
                self.mirror.bring_up(status)
            except Exception as error:
                return error
        return None

    def damage(self, number: int, content: bytes) -> None:
        """Put something else in the place of a line, counted from 1."""
        lines = self.metrics.read_bytes().splitlines(keepends=True)
        lines[number - 1] = content
        self.metrics.write_bytes(b"".join(lines))


def values_in_file(path: Path) -> set[Value]:
    """Return every value in metrics.jsonl, by the json module."""
    values: set[Value] = set()
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            metrics = json.loads(line.strip(b"\0"))
            step, _ = metrics.pop("step"), metrics.pop("time")
            values |= {(key, step, _stored(float(value))) for key, value in metrics.items()}
    assert values
    return values


def _stored(value: float) -> float | None:
    if math.isnan(value):
        return None
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def rows(database: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query, values).fetchall()


def runs_in(database: Path, name: str) -> list[tuple[str, str]]:
    """Return id and status of the runs of that name that are not in the trash."""
    query = (
        "SELECT r.run_uuid, r.status FROM runs r JOIN experiments e USING (experiment_id)"
        " WHERE r.name = ? AND r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'"
    )
    return rows(database, query, name)


def values_of(database: Path, run_id: str) -> list[Value]:
    found = rows(database, "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", run_id)
    return [(key, step, None if is_nan else value) for key, step, value, is_nan in found]


def pairs_of(database: Path, table: str, run_id: str) -> dict[str, str]:
    return dict(rows(database, f"SELECT key, value FROM {table} WHERE run_uuid = ?", run_id))


def everything(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the content of the tables that a run can change."""
    tables = ("experiments", "runs", "metrics", "latest_metrics", "params", "tags")
    return {table: sorted(rows(database, f"SELECT * FROM {table}"), key=repr) for table in tables}
