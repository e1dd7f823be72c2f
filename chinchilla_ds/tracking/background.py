"""BackgroundTracker: a tracking backend on its own thread, so that it can neither stall nor end a run."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus, TrackingBackend

_logger = logging.getLogger(__name__)

_Work = Callable[[TrackingBackend], None]
_Entry = MetricRecord | _Work


class BackgroundTracker:
    """Runs a backend on a thread behind a bounded queue.

    Every call returns at once; metrics are written in batches, in order. What a backend fails to accept stays in the
    queue and is retried, at the latest when the tracker closes. A full queue drops the newest entries. The first
    failure, the recovery from it, and final losses are logged.
    """

    def __init__(
        self,
        open_backend: Callable[[], TrackingBackend],
        *,
        name: str,
        capacity: int = 10_000,
        batch_interval_s: float = 2.0,
        retry_interval_s: float = 5.0,
        close_timeout_s: float = 60.0,
    ) -> None:
        """Start the thread.

        Args:
            open_backend: creates the backend, on the thread; may raise, and is then called again.
            name: the backend's name in messages.
            capacity: calls that may wait; more are dropped.
            batch_interval_s: how long metrics accumulate before they are written.
            retry_interval_s: pause after a failure of the backend.
            close_timeout_s: how long `close` waits for a slow backend.
        """
        self._open_backend = open_backend
        self._name = name
        self._capacity = capacity
        self._batch_interval_s = batch_interval_s
        self._retry_interval_s = retry_interval_s
        self._close_timeout_s = close_timeout_s
        self._backend: TrackingBackend | None = None
        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._closing: RunStatus | None = None
        self._is_failing = False
        self._lost = 0
        self._in_hand = 0
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, notes: Sequence[str] = ()) -> None:
        """Queue the numbers of one optimizer step.

        Args:
            metrics: values by name.
            step: optimizer steps taken.
            notes: what is said about the step.
        """
        self._put(MetricRecord(metrics=dict(metrics), step=step, time_s=time.time(), notes=tuple(notes)))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queue settings of the whole run."""
        copied = dict(params)
        self._put(lambda backend: backend.log_params(copied))

    def log_artifact(self, path: Path) -> None:
        """Queue the copy of a file or folder."""
        self._put(lambda backend: backend.log_artifact(path))

    def close(self, status: RunStatus) -> None:
        """Write what is queued, end the run, and log what was lost. Waits at most `close_timeout_s`."""
        with self._changed:
            if self._closing is not None:
                return
            self._closing = status
            self._changed.notify_all()
        self._thread.join(self._close_timeout_s)
        with self._changed:
            if self._thread.is_alive():
                pending = len(self._queue) + self._in_hand
                self._queue.clear()
                _logger.warning(
                    "%s was not written completely within %g s; up to %d entries are lost",
                    self._name,
                    self._close_timeout_s,
                    pending,
                )
            if self._lost:
                _logger.warning("%s lost %d entries of this run", self._name, self._lost)

    def _put(self, entry: _Entry) -> None:
        with self._changed:
            if self._closing is None and len(self._queue) < self._capacity:
                self._queue.append(entry)
                self._changed.notify_all()
                return
            first, self._lost = self._lost == 0, self._lost + 1
        reason = f"its queue of {self._capacity} entries is full" if self._closing is None else "it is closed"
        if first:
            _logger.warning("%s loses entries: %s", self._name, reason)

    def _work(self) -> None:
        """Write what was queued, in order, at most once per interval, until the tracker closes."""
        wait_s = self._batch_interval_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing is not None)
                self._changed.wait_for(lambda: self._closing is not None, timeout=wait_s)
                is_last = self._closing is not None
                entries = list(self._queue)
                self._queue.clear()
                self._in_hand = len(entries)
            left = self._written(entries)
            with self._changed:
                self._in_hand = 0
                self._queue.extendleft(reversed(left))
                if is_last:
                    self._lost += len(self._queue)
                    self._queue.clear()
            if is_last:
                break
            wait_s = self._retry_interval_s if left else self._batch_interval_s
        self._close_backend()

    def _written(self, entries: Sequence[_Entry]) -> Sequence[_Entry]:
        """Write entries until one fails; return that one and those after it."""
        done = 0
        try:
            if self._backend is None:
                self._backend = self._open_backend()
            for is_metrics, group in groupby(entries, key=lambda entry: isinstance(entry, MetricRecord)):
                chunk = list(group)
                if is_metrics:
                    self._backend.write([entry for entry in chunk if isinstance(entry, MetricRecord)])
                    done += len(chunk)
                    continue
                for work in chunk:
                    if not isinstance(work, MetricRecord):
                        work(self._backend)
                        done += 1
        except Exception as error:  # the boundary between a run and an unknown backend
            self._report(error)
        else:
            if self._is_failing:
                _logger.warning("%s can be written again", self._name)
            self._is_failing = False
        return entries[done:]

    def _report(self, error: Exception) -> None:
        """Warn about the first of several failures in a row."""
        _logger.debug("%s failed", self._name, exc_info=True)
        if not self._is_failing:
            self._is_failing = True
            _logger.warning(
                "%s cannot be written; training continues, and pending entries stay in memory and are retried: %s",
                self._name,
                f"{type(error).__name__}: {error}",
            )

    def _close_backend(self) -> None:
        try:
            if self._backend is not None:
                self._backend.close(self._closing or RunStatus.FAILED)
        except Exception as error:  # as above
            self._report(error)
