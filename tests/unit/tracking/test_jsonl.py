import json
import math
from pathlib import Path

from chinchilla_ds.tracking.jsonl import JsonlBackend, jsonl_tracker
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus


def record(step: int, **metrics: float) -> MetricRecord:
    return MetricRecord(metrics=metrics, step=step, time_s=1000.1234)


def test_one_object_per_moment_flushed_at_every_batch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    backend = JsonlBackend(path=path)
    backend.write([record(1, loss=2.5, grad_norm=math.nan), record(2, loss=math.inf)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "time": 1000.123, "loss": 2.5, "grad_norm": None},
        {"step": 2, "time": 1000.123, "loss": None},
    ]
    backend.close(RunStatus.FINISHED)


def test_a_second_run_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        tracker = jsonl_tracker(run_folder=tmp_path)
        tracker.log_metrics({"loss": 1.0}, step=step)
        tracker.close(RunStatus.FINISHED)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
