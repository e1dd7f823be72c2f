"""What a run says when its loss leaves the band that its beginning predicts: in log, metrics and table."""

import io
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.outlook import ScheduleTable
from chinchilla_ds.run_plan import Decay, Schedule
from chinchilla_ds.tracking.jsonl import JsonlBackend
from chinchilla_ds.tracking.metrics_file import read_metrics
from chinchilla_ds.tracking.points import check_same_run, gather
from chinchilla_ds.tracking.tracker import MetricRecord
from chinchilla_ds.training.callback import TrainingState
from chinchilla_ds.training.callbacks.progress import ProgressCallback
from chinchilla_ds.training.callbacks.summary import SummaryCallback
from chinchilla_ds.training.callbacks.tracking import step_metrics
from chinchilla_ds.training.loss_monitor import LossMonitor, planned_schedule
from chinchilla_ds.training.lr_schedule import learning_rate
from tests.unit.training.states import make_plan, make_state, take_step

TRAIN_ITERS, BROKEN_AT = 600, 300


def _losses(*, broken: bool, seed: int = 0) -> list[float]:
    step = np.arange(1, TRAIN_ITERS + 1)
    loss = 2.5 + 8 * (step + 10.0) ** -0.5
    loss = loss * np.exp(0.02 * np.random.default_rng(seed).standard_normal(TRAIN_ITERS))
    if broken:
        loss[BROKEN_AT:] += 0.4
    return [float(value) for value in loss]


def _step(state: TrainingState, monitor: LossMonitor, loss: float) -> None:
    state.notes = ()
    take_step(state, loss=loss)
    monitor.add(state)


def _write(backend: JsonlBackend, state: TrainingState) -> None:
    metrics = step_metrics(state, read_memory=lambda: 1)
    backend.write([MetricRecord(metrics=metrics, step=state.iteration, time_s=1.0, notes=state.notes)])


def test_log_metrics_and_table_say_that_the_loss_has_left_its_band(tmp_path: Path) -> None:
    state, log, table = make_state(tmp_path, train_iters=TRAIN_ITERS), io.StringIO(), io.StringIO()
    monitor, backend = LossMonitor(state.plan), JsonlBackend(path=tmp_path / "metrics.jsonl")
    progress, summary = ProgressCallback(stream=log, terminal=False), SummaryCallback(stream=table, terminal=False)
    progress.on_train_start(state)
    for loss in _losses(broken=True):
        _step(state, monitor, loss)
        progress.on_step_end(state)
        _write(backend, state)
    summary.on_train_end(state)
    (line,) = [line for line in log.getvalue().splitlines() if "95 % band" in line]
    at = int(line.split()[1].partition("/")[0])
    assert BROKEN_AT < at <= BROKEN_AT + 20
    (noted,) = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record.notes]
    assert noted.step == at
    assert line.endswith(noted.notes[0])
    assert noted.notes[0].startswith("loss 0.")
    assert " above the 95 % band since step 30" in noted.notes[0]
    assert noted.metrics["loss_above_band_since"] == pytest.approx(BROKEN_AT + 1, abs=8)
    (row,) = [row for row in table.getvalue().splitlines() if row.startswith("loss curve")]
    assert f"above the 95 % band since step {int(noted.metrics['loss_above_band_since'])}" in row


def test_a_clean_run_says_nothing_and_its_prediction_is_a_curve_with_a_band(tmp_path: Path) -> None:
    for seed in range(5):
        state = make_state(tmp_path, train_iters=TRAIN_ITERS)
        monitor, curve = LossMonitor(state.plan), []
        for loss in _losses(broken=False, seed=seed):
            _step(state, monitor, loss)
            assert state.notes == ()
            curve.append(step_metrics(state, read_memory=lambda: 1))
        assert state.departure is None
        assert "predicted_loss" not in curve[10], "the law says nothing about so small a run"
        assert "predicted_loss_low" not in curve[10]
        for metrics in curve[100:]:
            assert metrics["predicted_loss_low"] < metrics["predicted_loss"] < metrics["predicted_loss_high"]
        inside = [m["predicted_loss_low"] < m["train/loss"] < m["predicted_loss_high"] for m in curve[100:]]
        assert np.mean(inside) > 0.9
        assert curve[100]["predicted_loss"] > curve[-1]["predicted_loss"] + 0.2


def test_a_resumed_run_takes_its_beginning_from_metrics(tmp_path: Path) -> None:
    losses = _losses(broken=True)
    state = make_state(tmp_path, train_iters=TRAIN_ITERS)
    monitor, backend = LossMonitor(state.plan), JsonlBackend(path=tmp_path / "metrics.jsonl")
    for loss in losses[:400]:
        _step(state, monitor, loss)
        _write(backend, state)
    assert state.departure is not None
    resumed = make_state(tmp_path, train_iters=TRAIN_ITERS)
    resumed.iteration = 380
    again = LossMonitor(resumed.plan)
    again.resume(resumed)
    for loss in losses[380:450]:
        _step(resumed, again, loss)
        assert resumed.notes == (), "it has been said"
    assert resumed.expected is not None
    assert resumed.departure is not None
    assert resumed.departure.since == state.departure.since
    assert resumed.departure.until is None


def test_without_its_metrics_a_resumed_run_starts_afresh(tmp_path: Path) -> None:
    state = make_state(tmp_path, train_iters=TRAIN_ITERS)
    state.iteration = 300
    monitor = LossMonitor(state.plan)
    monitor.resume(state)
    for loss in _losses(broken=False)[300:]:
        _step(state, monitor, loss)
    assert state.departure is None
    assert state.expected is not None


def test_a_run_of_a_few_steps_is_not_fitted(tmp_path: Path) -> None:
    state = make_state(tmp_path, train_iters=45)
    monitor = LossMonitor(state.plan)
    for loss in _losses(broken=False)[:45]:
        _step(state, monitor, loss)
    assert state.expected is None


@pytest.mark.parametrize("decay", list(Decay))
@pytest.mark.parametrize("train_iters", [500, 100_000])
def test_the_table_of_a_plan_is_its_schedule(decay: Decay, train_iters: int) -> None:
    import dataclasses

    warmup, falling = train_iters // 10, train_iters // (1 if decay is Decay.COSINE else 5)
    schedule = Schedule(
        decay=decay, warmup_iters=warmup, decay_iters=min(falling, train_iters - warmup), min_learning_rate=1e-4
    )
    plan = dataclasses.replace(make_plan(train_iters=train_iters), schedule=schedule)
    rates = [
        learning_rate(i, schedule=schedule, peak=plan.optimizer.learning_rate, train_iters=train_iters)
        for i in range(train_iters)
    ]
    exact = ScheduleTable.of(np.r_[0.0, rates], warmup_steps=warmup)
    table = planned_schedule(plan)
    steps = np.linspace(warmup, train_iters, 50)
    for found, wanted in zip(table.at(steps), exact.at(steps), strict=True):
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-4)


def test_a_curve_in_the_record_is_not_compared_with_the_plan(tmp_path: Path) -> None:
    from chinchilla_ds.errors import TrackingError

    plan = make_plan()
    before = MetricRecord(metrics={"predicted_loss": plan.predicted_loss}, step=1, time_s=1.0)
    curve = MetricRecord(metrics={"predicted_loss": 3.0, "predicted_loss_low": 2.9}, step=2, time_s=2.0)
    check_same_run(gather([before, curve]), plan=plan)
    other = MetricRecord(metrics={"predicted_loss": 3.0}, step=1, time_s=1.0)
    with pytest.raises(TrackingError, match="another run"):
        check_same_run(gather([other, curve]), plan=plan)


def test_what_was_above_and_has_ended_is_not_fitted_after_a_resume(tmp_path: Path) -> None:
    losses = _losses(broken=False)
    losses[150:250] = [loss + 1 for loss in losses[150:250]]
    state = make_state(tmp_path, train_iters=TRAIN_ITERS)
    monitor, backend, said = LossMonitor(state.plan), JsonlBackend(path=tmp_path / "metrics.jsonl"), []
    for loss in losses[:400]:
        _step(state, monitor, loss)
        said += state.notes
        _write(backend, state)
    assert len(said) == 2
    assert said[1].startswith("loss back in its band; it was 0.9")
    assert said[1].endswith(" since step 151, until step 250")
    resumed = make_state(tmp_path, train_iters=TRAIN_ITERS)
    resumed.iteration = 400
    again = LossMonitor(resumed.plan)
    again.resume(resumed)
    for loss in losses[400:]:
        _step(resumed, again, loss)
        _step(state, monitor, loss)
    assert resumed.expected is not None
    assert state.expected is not None
    assert resumed.expected.loss == pytest.approx(state.expected.loss, rel=0.005)
    assert resumed.departure is None
