"""In what order a run steps, saves and evaluates; the engine and the saver are fakes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.processes.stopping import StopRequest
from chinchilla_ds.training.loop import _Run
from tests.unit.training.states import make_state, take_step

TRAIN_ITERS = 3


class FakeWatchdog:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def phase(self, name: str, *, scale: float) -> Iterator[None]:
        yield


class Recorder:
    """A run whose parts only say that they were called, and whether a signal would be honoured then."""

    def __init__(self, folder: Path, *, stops_at: int | None = None) -> None:
        self.events: list[tuple[str, bool]] = []
        self.stops_at = stops_at
        run: Any = object.__new__(_Run)
        run.state, run.stop, run.watchdog = make_state(folder, train_iters=TRAIN_ITERS), StopRequest(), FakeWatchdog()
        run.plan, run.callbacks, run.sample_interval_tokens = run.state.plan, (), None
        run._step, run._evaluate, run._sample = self._step, self._says("evaluate"), self._says("sample")
        run.saver = SimpleNamespace(
            save=lambda complete=False: self._says("save, complete" if complete else "save")(),
            save_if_due=self._says("save if due"),
            save_last_step=self._says("save the last step"),
            finish=self._says("finish"),
        )
        self.run = run

    def _says(self, what: str) -> Any:
        return lambda *_, **__: self.events.append((what, self.run.stop.can_be_honoured))

    def _step(self) -> None:
        self._says("step")()
        take_step(self.run.state)
        self.run.state.data_step += 1
        if self.run.state.data_step == self.stops_at:
            self.run.state.step = StepResult(
                loss=4.0, grad_norm=1.0, learning_rate=1e-3, skipped=False, loss_scale=1.0, stop=True
            )


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chinchilla_ds.training.loop.groups.is_rank_zero", lambda: True)


ENDING = [
    ("save the last step", True),
    ("finish", False),
    ("evaluate", False),
    ("sample", False),
    ("save, complete", False),
]


def test_the_last_step_is_saved_while_signals_still_wait_and_before_the_evaluation(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    state = recorder.run.train()
    assert recorder.events == [*[("step", True), ("save if due", True)] * (TRAIN_ITERS - 1), ("step", True), *ENDING]
    assert state.stopped_by is None


@pytest.mark.parametrize("begins", ["resume", "take_weights", None])
def test_a_save_is_tried_before_anything_is_read_or_trained(begins: str | None, tmp_path: Path) -> None:
    events: list[str] = []
    names = ("rehearse", "resume", "take_weights")
    run: Any = object.__new__(_Run)
    run.saver = SimpleNamespace(**{name: lambda *_, name=name: events.append(name) for name in names})
    run.state, run.guards = None, SimpleNamespace(resumed=lambda state: None)
    run.begin(tmp_path if begins == "resume" else None, init_from=tmp_path if begins else None)
    assert events == ["rehearse", *([begins] if begins else [])]


def test_a_run_that_was_killed_in_its_evaluation_takes_no_step_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.run.state.data_step = TRAIN_ITERS
    recorder.run.train()
    assert recorder.events == ENDING


@pytest.mark.parametrize("stops_at", [2, TRAIN_ITERS])
def test_a_run_that_is_asked_to_stop_saves_once_and_leaves(stops_at: int, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, stops_at=stops_at)
    (tmp_path / "STOP").touch()
    state = recorder.run.train()
    assert [what for what, _ in recorder.events if what != "save if due"] == [*["step"] * stops_at, "save", "finish"]
    assert state.stopped_by == str(tmp_path / "STOP")
    assert not (tmp_path / "STOP").exists()
