import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_ds.tracking.record import plan_params
from chinchilla_ds.tracking.tracker import RunStatus
from chinchilla_ds.training.callbacks.tracking import TrackingCallback, step_metrics
from tests.unit.training.states import FLOPS_PER_TOKEN, TOKENS_PER_STEP, evaluate, make_plan, make_state, take_step


class ListTracker:
    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.notes: list[str] = []
        self.params: dict[str, object] = {}
        self.artifacts: list[str] = []
        self.status: RunStatus | None = None

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, notes: Sequence[str] = ()) -> None:
        self.metrics.append((step, dict(metrics)))
        self.notes += notes

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params |= params

    def log_artifact(self, path: Path) -> None:
        self.artifacts.append(path.name)

    def close(self, status: RunStatus) -> None:
        self.status = status


def test_steps_and_evaluations_are_logged_with_what_plots_loss_against_flops(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    state.mfu = 0.25
    callback = TrackingCallback(tracker=tracker, device_type="cpu")
    callback.on_train_start(state)
    take_step(state, loss=5.0)
    callback.on_step_end(state)
    evaluate(state, loss=5.5, bits_per_byte=2.5)
    callback.on_evaluation_end(state)
    step, metrics = tracker.metrics[0]
    assert step == 1
    assert metrics.pop("memory_bytes") > 1e6
    assert metrics == {
        "train/loss": 5.0,
        "learning_rate": 1e-3,
        "grad_norm": 1.5,
        "tokens": TOKENS_PER_STEP,
        "flops": TOKENS_PER_STEP * FLOPS_PER_TOKEN,
        "tokens_per_s": TOKENS_PER_STEP / 0.5,
        "mfu": 0.25,
        "loss_scale": 8.0,
        "skipped_steps": 0.0,
        "bad_batches": 0.0,
    }
    per_byte = pytest.approx(2.5 * math.log(2))
    assert tracker.metrics[1] == (
        1,
        {"held_out/loss": 5.5, "held_out/loss_per_byte": per_byte, "held_out/bits_per_byte": 2.5},
    )


def test_a_prediction_is_logged_where_the_law_says_something(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    take_step(state, loss=5.0)
    prediction = replace(state.plan.prediction, loss=2.5, loss_law="a law of ours")
    state.plan = replace(state.plan, prediction=prediction)
    assert step_metrics(state, read_memory=lambda: 0)["predicted_loss"] == 2.5
    state.plan = replace(state.plan, prediction=replace(prediction, loss=9.0))
    assert "predicted_loss" not in step_metrics(state, read_memory=lambda: 0), "worse than guessing"


def test_what_tells_the_text_from_others_is_logged_beside_the_plan(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    text = {"tokenizer_hash": "abc", "bytes_per_token": 3.5}
    TrackingCallback(tracker=tracker, device_type="cpu", params=text).on_train_start(state)
    assert tracker.params == {**plan_params(state.plan), **text}
    assert "seed" in tracker.params


def test_a_skipped_step_logs_no_loss_and_nothing_that_is_not_a_number(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    take_step(state, skipped=True)
    TrackingCallback(tracker=tracker, device_type="cpu").on_step_end(state)
    assert tracker.metrics == [(0, {"loss_scale": 8.0, "skipped_steps": 1.0, "bad_batches": 0.0})]
    assert all(math.isfinite(value) for value in tracker.metrics[0][1].values())


def test_artifacts_are_copied_once_and_the_checkpoint_never(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    state.artifacts |= {"plan": str(tmp_path / "plan.json"), "checkpoint": str(tmp_path / "checkpoint")}
    callback = TrackingCallback(tracker=tracker, device_type="cpu")
    callback.on_train_start(state)
    assert tracker.artifacts == ["plan.json", "environment.json"]
    state.artifacts["tokenizer"] = str(tmp_path / "tokenizer.model")
    callback.on_train_end(state)
    assert tracker.artifacts == ["plan.json", "environment.json", "tokenizer.model"]


def test_every_sample_is_copied(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    callback = TrackingCallback(tracker=tracker, device_type="cpu")
    for name in ("sample_0000002.txt", "sample_0000004.txt", "sample.txt"):
        state.artifacts["sample"] = str(tmp_path / name)
        callback.on_sample(state)
    callback.on_train_end(state)
    assert tracker.artifacts == ["sample_0000002.txt", "sample_0000004.txt", "sample.txt"]


def test_the_environment_is_written_into_the_run_folder(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    TrackingCallback(tracker=ListTracker(), device_type="cpu").on_train_start(state)
    environment = json.loads(Path(state.artifacts["environment"]).read_text())
    assert environment["python"].startswith("3.")
    assert environment["versions"]["torch"] == environment["packages"]["torch"]


@pytest.mark.parametrize(
    ("hook", "status"),
    [("on_train_end", RunStatus.FINISHED), ("on_stop", RunStatus.KILLED), (None, RunStatus.FAILED)],
)
def test_a_run_that_did_not_reach_its_end_failed_or_was_stopped(
    tmp_path: Path, hook: str | None, status: RunStatus
) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    callback = TrackingCallback(tracker=tracker, device_type="cpu")
    callback.on_train_start(state)
    if hook is not None:
        getattr(callback, hook)(state)
    callback.on_close()
    assert tracker.status is status


def test_other_ranks_log_nothing(tmp_path: Path) -> None:
    state, tracker = make_state(tmp_path), ListTracker()
    state.owns_loss = False
    callback = TrackingCallback(tracker=tracker, device_type="cpu")
    callback.on_train_start(state)
    take_step(state)
    callback.on_step_end(state)
    callback.on_train_end(state)
    assert (tracker.metrics, tracker.params, tracker.artifacts) == ([], {}, [])
    assert not list(tmp_path.iterdir())


def test_plan_parameters_have_dotted_names() -> None:
    params = plan_params(make_plan())
    assert params["shape.num_layers"] == 4
    assert str(params["precision"]) == "fp32"
    assert "reasons" not in params
