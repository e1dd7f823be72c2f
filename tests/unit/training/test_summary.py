import dataclasses
import io
from pathlib import Path

import pytest

from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.training.callback import TrainingState
from chinchilla_ds.training.callbacks.summary import SummaryCallback
from tests.unit.training.states import evaluate, make_state, take_step


def summarize(state: TrainingState, *, terminal: bool = False, unigram_loss: float | None = 6.0) -> str:
    stream = io.StringIO()
    destination = MlflowDestination.resolve(output=state.run_folder.parent, run_name="tiny")
    callback = SummaryCallback(unigram_loss=unigram_loss, mlflow=destination, stream=stream, terminal=terminal)
    for step in range(100):
        take_step(state, loss=9.0 if step < 80 else 3.0 + (step % 2))
        callback.on_step_end(state)
    evaluate(state, loss=4.0, bits_per_byte=2.0)
    callback.on_train_end(state)
    return stream.getvalue()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingState:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "tiny"
    state = make_state(folder)
    state.artifacts |= {"plan": str(folder / "plan.json"), "checkpoint": str(folder / "checkpoint")}
    return state


def test_the_table_holds_every_number(state: TrainingState) -> None:
    rows = dict(line.split("  ", 1) for line in summarize(state).splitlines() if "  " in line)
    assert {name: value.strip() for name, value in rows.items() if name != "wall time"} == {
        "N": "1.23M parameters (4 layers, hidden 128, 2048 vocabulary)",
        "D": "410K tokens, 0.3 per parameter",
        "predicted loss": "none: the budget lies 1,464,844 times below the 6e+18 to 3e+21 FLOPs that hoffmann2022 was "
        "fitted on",
        "train loss": "3.5000 nats/token, 1.7500 bits/byte (mean of the last 20 steps)",
        "held-out loss": "4.0000 nats/token, 2.0000 bits/byte",
        "unigram model": "6.0000 nats/token, 3.0000 bits/byte (same tokenizer, held-out)",
        "FLOPs spent": "4.1e+12 FLOPs, 100.0% of the budget of 4.1e+12 FLOPs",
        "checkpoint": "runs/tiny/checkpoint",
        "plan": "runs/tiny/plan.json",
        "MLflow run": "tiny in sqlite:///runs/mlflow.db",
        "MLflow UI": "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db",
    }
    assert rows["wall time"].strip().endswith("50.0 s of it training")


def test_a_prediction_is_printed_within_reach_of_the_law_and_the_footnote_says_how_far_it_is_stretched(
    state: TrainingState,
) -> None:
    state.plan = dataclasses.replace(state.plan, compute_budget_flops=6e16)
    lines = summarize(state).splitlines()
    assert "predicted loss *  7.1250 nats/token by hoffmann2022" in lines
    assert lines[-1].startswith("* ")
    assert "100 times outside the 6e+18 to 3e+21 FLOPs" in lines[-1]


@pytest.mark.parametrize(("factor", "printed"), [(299, True), (301, False)])
def test_beyond_three_hundred_times_the_law_s_range_no_number_is_a_prediction(
    state: TrainingState, factor: float, printed: bool
) -> None:
    state.plan = dataclasses.replace(state.plan, compute_budget_flops=6e18 / factor)
    assert ("7.125" in summarize(state)) == printed


def test_a_loss_worse_than_guessing_is_not_a_prediction(state: TrainingState) -> None:
    prediction = dataclasses.replace(state.plan.prediction, loss=7.7, law="my_law.json", loss_law="my_law.json")
    state.plan = dataclasses.replace(state.plan, prediction=prediction)
    text = summarize(state)
    assert "none: by my_law.json it would be worse than guessing among 2000 pieces, 7.601 nats per token" in text
    assert "7.7" not in text


def test_a_log_gets_no_escape_codes_and_a_terminal_gets_a_box(state: TrainingState, tmp_path: Path) -> None:
    assert "\x1b" not in summarize(state)
    boxed = summarize(make_state(tmp_path / "runs" / "other"), terminal=True)
    assert "\u2502" in boxed
    assert "4.0000 nats/token" in boxed


def test_what_is_not_known_is_left_out(state: TrainingState) -> None:
    assert "unigram" not in summarize(state, unigram_loss=None)


def test_other_ranks_print_nothing(state: TrainingState) -> None:
    state.owns_loss = False
    assert summarize(state) == ""
