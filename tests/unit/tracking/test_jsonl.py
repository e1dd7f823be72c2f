import json
import math
import resource
import time
from pathlib import Path

import pytest

from chinchilla_ds.tracking.jsonl import METRICS_FILE, JsonlBackend, jsonl_tracker
from chinchilla_ds.tracking.metrics_file import read_metrics
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus


def record(step: int, **metrics: float) -> MetricRecord:
    return MetricRecord(metrics=metrics, step=step, time_s=1000.1234)


def test_one_object_per_moment_flushed_at_every_batch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    backend = JsonlBackend(path=path)
    backend.write([record(1, loss=2.5, grad_norm=math.nan), record(2, loss=-math.inf)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "time": 1000.123, "loss": 2.5, "grad_norm": "NaN"},
        {"step": 2, "time": 1000.123, "loss": "-Infinity"},
    ]
    backend.close(RunStatus.FINISHED)


def test_a_second_run_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        tracker = jsonl_tracker(run_folder=tmp_path)
        tracker.log_metrics({"loss": 1.0}, step=step)
        tracker.close(RunStatus.FINISHED)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# ---- a run that is continued -----------------------------------------------------------------------------------------


def step(number: int, loss: float = 1.0) -> MetricRecord:
    return record(number, **{"train/loss": loss})


def evaluation(number: int, loss: float = 1.0) -> MetricRecord:
    return record(number, **{"held_out/loss": loss})


def moments(path: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in line if name.endswith("loss")]


def written(path: Path, *batches: list[MetricRecord]) -> None:
    """Write what one process writes."""
    backend = JsonlBackend(path=path)
    for batch in batches:
        backend.write(batch)
    backend.close(RunStatus.KILLED)


def test_steps_that_are_taken_again_stand_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(number, 1.0) for number in range(1, 8)])
    written(path, [step(5, 2.0)], [step(6, 2.0)])
    assert moments(path) == [(number, "train/loss", 1.0 if number < 5 else 2.0) for number in range(1, 7)]


def test_the_evaluation_at_the_checkpoints_own_step_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(4), evaluation(4), step(5), evaluation(5), step(6)])
    written(path, [step(5, 2.0), evaluation(5, 2.0)])
    kept = [(4, "train/loss", 1.0), (4, "held_out/loss", 1.0)]
    assert moments(path) == [*kept, (5, "train/loss", 2.0), (5, "held_out/loss", 2.0)]


def test_a_last_evaluation_that_is_made_again_leaves_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(4), evaluation(4)])
    written(path, [evaluation(4, 2.0)])
    assert moments(path) == [(4, "train/loss", 1.0), (4, "held_out/loss", 2.0)]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(4), step(5)])
    path.write_text(path.read_text() + '{"step": 6, "tra')
    written(path, [step(6, 2.0)])
    assert moments(path) == [(4, "train/loss", 1.0), (5, "train/loss", 1.0), (6, "train/loss", 2.0)]
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "tracking.json"}


def test_a_process_that_takes_no_step_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(4)])
    before = path.read_bytes()
    written(path)
    assert path.read_bytes() == before


def test_going_back_within_one_process_cuts_nothing(tmp_path: Path) -> None:
    """A rewind after a spike: what was seen of the spike stays."""
    path = tmp_path / "metrics.jsonl"
    written(path, [step(1)], [step(2, 9.0)], [step(2, 1.5)])
    assert moments(path) == [(1, "train/loss", 1.0), (2, "train/loss", 9.0), (2, "train/loss", 1.5)]


def attempt(number: int, skipped: int) -> MetricRecord:
    """A skipped step: the optimizer stays where it is."""
    return record(number, skipped_steps=float(skipped), loss_scale=1.0)


def test_a_skipped_step_that_comes_first_costs_no_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(4), evaluation(4), attempt(4, 1), attempt(4, 2), step(5)])
    written(path, [attempt(4, 2), step(5, 2.0)])
    assert moments(path) == [(4, "train/loss", 1.0), (4, "held_out/loss", 1.0), (5, "train/loss", 2.0)]
    assert [json.loads(line).get("skipped_steps") for line in path.read_text().splitlines()] == [
        *(None, None, 1.0, 2.0, None)
    ]


def test_a_damaged_line_costs_only_itself_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A power cut: the line of step 2 never reached the disk, and that of step 4 lies behind zeros."""
    path = tmp_path / "metrics.jsonl"
    written(path, [step(number) for number in range(1, 6)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], bytes(64) + b"\n", lines[2], bytes(64) + lines[3], lines[4]]))
    written(path, [step(5, 2.0)])
    assert moments(path) == [(1, "train/loss", 1.0), *((n, "train/loss", 1.0) for n in (3, 4)), (5, "train/loss", 2.0)]
    assert caplog.messages == [f"{path}: 1 line cannot be read and is skipped: line 2 holds 64 NUL bytes"]


def test_a_full_disk_leaves_whole_lines_and_what_it_did_not_take_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    backend = JsonlBackend(path=path)
    backend.write([step(1)])
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            backend.write([step(2), step(3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before, "no part of a line"
    backend.write([step(2), step(3)])
    assert [number for number, _, _ in moments(path)] == [1, 2, 3]


def test_a_full_disk_while_old_lines_are_dropped_leaves_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, [step(number) for number in range(1, 8)])
    before = path.read_bytes()
    backend = JsonlBackend(path=path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            backend.write([step(5, 2.0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "tracking.json"}, "nothing half-written"
    backend.write([step(5, 2.0)])
    assert moments(path) == [(number, "train/loss", 1.0 if number < 5 else 2.0) for number in range(1, 6)]


def test_settings_and_files_are_kept_for_whoever_follows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for zero_stage in (1, 3):
        backend = JsonlBackend(path=path)
        backend.log_params({"zero_stage": zero_stage, "num_layers": 4})
        backend.log_artifact(tmp_path / "plan.json")
        backend.log_artifact(Path("/elsewhere/tokenizer.model"))
    kept = json.loads((tmp_path / "tracking.json").read_text())
    assert kept["params"] == {"zero_stage": "1", "num_layers": "4"}
    assert kept["continued"] == {"zero_stage": "3"}
    assert kept["artifacts"] == ["plan.json", "/elsewhere/tokenizer.model"]


def test_lines_do_not_gather(tmp_path: Path) -> None:
    """A process may be killed after any step; MLflow's batches gather for two seconds."""
    path, tracker = tmp_path / METRICS_FILE, jsonl_tracker(run_folder=tmp_path)

    def seconds_until(lines: int) -> float:
        started_s = time.monotonic()
        while not path.is_file() or path.read_text().count("\n") < lines:
            assert time.monotonic() - started_s < 30.0
            time.sleep(0.01)
        return time.monotonic() - started_s

    tracker.log_metrics({"train/loss": 1.0}, step=1)
    seconds_until(1)  # the thread has started
    tracker.log_metrics({"train/loss": 0.5}, step=2)
    assert seconds_until(2) < 1.5
    tracker.close(RunStatus.FINISHED)


def test_what_is_said_of_a_step_is_on_its_line_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    backend = JsonlBackend(path=path)
    said = MetricRecord(metrics={"train/loss": 2.0}, step=2, time_s=2.0, notes=("loss spike", "slow rank"))
    backend.write([MetricRecord(metrics={"train/loss": 1.0}, step=1, time_s=1.0), said])
    first, second = path.read_text().splitlines()
    assert "notes" not in json.loads(first)
    assert json.loads(second)["notes"] == ["loss spike", "slow rank"]
    assert list(read_metrics(path))[1] == said
    path.write_text('{"step": 1, "notes": 3}\n{"step": 2, "notes": ["x"], "train/loss": 1}\n')
    skipped: list[str] = []
    assert [record.step for record in read_metrics(path, skipped=skipped)] == [2]
    assert skipped == ["line 1 has the notes 3, which are not a list of texts"]
