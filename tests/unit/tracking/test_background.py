import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from chinchilla_ds.tracking.background import BackgroundTracker
from chinchilla_ds.tracking.tracker import CompositeTracker, MetricRecord, NullTracker, RunStatus

PATIENCE_S = 30.0
"""Only a broken test waits so long."""


class ListBackend:
    """Remembers what it was told, in order; `gate` holds every call up until it is set."""

    def __init__(self, *, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        self.seen: list[object] = []
        self.entered = threading.Event()
        self.batches = 0
        self._gate = gate
        self.error = error

    def write(self, records: Sequence[MetricRecord]) -> None:
        self.batches += 1
        for record in records:
            self._see((record.step, dict(record.metrics)))

    def log_params(self, params: Mapping[str, object]) -> None:
        self._see(dict(params))

    def log_artifact(self, path: Path) -> None:
        self._see(path)

    def close(self, status: RunStatus) -> None:
        self.seen.append(status)

    def _see(self, entry: object) -> None:
        self.entered.set()
        if self._gate is not None:
            assert self._gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.seen.append(entry)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_order_is_kept_metrics_are_batched_and_close_writes_everything(caplog: pytest.LogCaptureFixture) -> None:
    backend = ListBackend()
    tracker = BackgroundTracker(lambda: backend, name="list", batch_interval_s=PATIENCE_S)
    tracker.log_params({"a": 1})
    for step in range(50):
        tracker.log_metrics({"loss": float(step)}, step=step)
    tracker.log_artifact(Path("plan.json"))
    tracker.close(RunStatus.FINISHED)
    steps = [(step, {"loss": float(step)}) for step in range(50)]
    assert backend.seen == [{"a": 1}, *steps, Path("plan.json"), RunStatus.FINISHED]
    assert backend.batches == 1
    assert messages(caplog) == []


def test_a_second_close_does_nothing() -> None:
    backend = ListBackend()
    tracker = BackgroundTracker(lambda: backend, name="list")
    tracker.close(RunStatus.FAILED)
    tracker.close(RunStatus.FINISHED)
    assert backend.seen == [RunStatus.FAILED]


def test_metrics_are_copied_when_they_are_logged() -> None:
    backend = ListBackend()
    tracker = BackgroundTracker(lambda: backend, name="list", batch_interval_s=PATIENCE_S)
    metrics = {"loss": 1.0}
    tracker.log_metrics(metrics, step=1)
    metrics["loss"] = 2.0
    tracker.close(RunStatus.FINISHED)
    assert backend.seen[0] == (1, {"loss": 1.0})


def test_a_slow_backend_blocks_nobody_and_a_full_queue_drops(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    backend = ListBackend(gate=gate)
    tracker = BackgroundTracker(lambda: backend, name="slow", capacity=3, batch_interval_s=0)
    tracker.log_metrics({}, step=0)
    assert backend.entered.wait(PATIENCE_S)  # from here on the backend hangs, and still every call returns
    for step in range(1, 9):
        tracker.log_metrics({}, step=step)
    gate.set()
    tracker.close(RunStatus.FINISHED)
    assert backend.seen == [(step, {}) for step in range(4)] + [RunStatus.FINISHED]
    assert messages(caplog) == [
        "slow loses entries: its queue of 3 entries is full",
        "slow lost 5 entries of this run",
    ]


def test_a_failing_backend_warns_once_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    backend = ListBackend(error=OSError("no space left on device"))
    tracker = BackgroundTracker(lambda: backend, name="full disk", batch_interval_s=0)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.log_artifact(Path("plan.json"))
    tracker.close(RunStatus.FINISHED)
    assert messages(caplog) == [
        "full disk cannot be written; training continues, and pending entries stay in memory and are retried: "
        "OSError: no space left on device",
        "full disk lost 3 entries of this run",
    ]
    assert backend.seen == [RunStatus.FINISHED]


def test_what_a_backend_failed_to_take_is_written_later_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    backend = ListBackend(error=OSError("no space left on device"))
    tracker = BackgroundTracker(lambda: backend, name="disk", batch_interval_s=0, retry_interval_s=0.01)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert backend.entered.wait(PATIENCE_S)
    backend.error = None
    tracker.log_metrics({"loss": 0.5}, step=2)
    tracker.close(RunStatus.FINISHED)
    assert backend.seen == [{"a": 1}, (1, {"loss": 1.0}), (2, {"loss": 0.5}), RunStatus.FINISHED]
    assert [message.split(";")[0] for message in messages(caplog)] == [
        "disk cannot be written",
        "disk can be written again",
    ]


def test_a_backend_that_opens_late_gets_everything() -> None:
    backend, failures = ListBackend(), iter([OSError("read-only"), OSError("read-only")])

    def open_backend() -> ListBackend:
        if error := next(failures, None):
            raise error
        return backend

    tracker = BackgroundTracker(open_backend, name="late", batch_interval_s=0, retry_interval_s=0.01)
    tracker.log_metrics({"loss": 1.0}, step=1)
    while not backend.entered.wait(0.01):
        pass
    tracker.close(RunStatus.FINISHED)
    assert backend.seen == [(1, {"loss": 1.0}), RunStatus.FINISHED]


def test_a_backend_that_does_not_open_warns_once_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    def open_backend() -> ListBackend:
        raise ConnectionError("no server at http://nowhere")

    tracker = BackgroundTracker(open_backend, name="elsewhere")
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.close(RunStatus.FINISHED)
    assert messages(caplog) == [
        "elsewhere cannot be written; training continues, and pending entries stay in memory and are retried: "
        "ConnectionError: no server at http://nowhere",
        "elsewhere lost 1 entries of this run",
    ]


def test_close_waits_only_so_long_for_a_backend_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    backend = ListBackend(gate=gate)
    tracker = BackgroundTracker(lambda: backend, name="hung", batch_interval_s=0, close_timeout_s=0.01)
    tracker.log_metrics({}, step=0)
    assert backend.entered.wait(PATIENCE_S)
    tracker.log_metrics({}, step=1)
    tracker.close(RunStatus.FINISHED)
    assert messages(caplog) == ["hung was not written completely within 0.01 s; up to 2 entries are lost"]
    gate.set()


def test_a_composite_tells_everyone_the_same() -> None:
    first, second = ListBackend(), ListBackend()
    tracker = CompositeTracker(
        [
            BackgroundTracker(lambda: first, name="first"),
            NullTracker(),
            BackgroundTracker(lambda: second, name="second"),
        ]
    )
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.log_artifact(Path("plan.json"))
    tracker.close(RunStatus.FINISHED)
    assert first.seen == second.seen == [{"a": 1}, (1, {"loss": 1.0}), Path("plan.json"), RunStatus.FINISHED]
