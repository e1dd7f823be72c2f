"""BackgroundTracker: a tracking backend on its own thread, so that it can neither stall nor end a run."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path

from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus, TrackingBackend

_logger = logging.getLogger(__name__)

_Work = Callable[[TrackingBackend], None]


class BackgroundTracker:
    """Runs a backend on a thread behind a bounded queue.

    Every call returns at once; metrics are written in batches, in order. A backend that fails costs one warning that
    names the failure; what is lost after it is counted and reported by `close`. A full queue drops the newest entries.
    """

    def __init__(
        self,
        open_backend: Callable[[], TrackingBackend],
        *,
        name: str,
        capacity: int = 10_000,
        batch_interval_s: float = 2.0,
        close_timeout_s: float = 60.0,
    ) -> None:
        """Start the thread.

        Args:
            open_backend: makes the backend, on the thread; slow imports and database migrations belong here.
            name: how messages call the backend.
            capacity: calls that may wait; more are dropped.
            batch_interval_s: how long metrics gather before they are written.
            close_timeout_s: how long `close` waits for a slow backend.
        """
        self._open_backend = open_backend
        self._name = name
        self._capacity = capacity
        self._batch_interval_s = batch_interval_s
        self._close_timeout_s = close_timeout_s
        self._changed = threading.Condition()
        self._queue: deque[MetricRecord | _Work] = deque()
        self._closing: RunStatus | None = None
        self._warned = False
        self._lost = 0
        self._in_hand = 0
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Queue the numbers of one optimizer step."""
        self._put(MetricRecord(metrics=dict(metrics), step=step, time_s=time.time()))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queue settings that hold for the whole run."""
        copied = dict(params)
        self._put(lambda backend: backend.log_params(copied))

    def log_artifact(self, path: Path) -> None:
        """Queue the copy of a file or folder."""
        self._put(lambda backend: backend.log_artifact(path))

    def close(self, status: RunStatus) -> None:
        """Write what is queued, end the run, and say what was lost. Waits at most `close_timeout_s`."""
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
                    "%s tracking did not finish within %g s; up to %d entries are not written",
                    self._name,
                    self._close_timeout_s,
                    pending,
                )
            if self._lost:
                _logger.warning("%s tracking lost %d entries of this run", self._name, self._lost)

    def _put(self, entry: MetricRecord | _Work) -> None:
        with self._changed:
            if self._closing is None and len(self._queue) < self._capacity:
                self._queue.append(entry)
                self._changed.notify_all()
                return
        reason = f"its queue of {self._capacity} entries is full" if self._closing is None else "it is closed"
        self._lose(1, reason)

    def _lose(self, count: int, reason: object) -> None:
        """Count lost entries; warn of the first failure only."""
        with self._changed:
            self._lost += count
            first, self._warned = not self._warned, True
        if first:
            _logger.warning("%s tracking failed, training goes on without it: %s", self._name, reason)

    def _work(self) -> None:
        backend = self._opened()
        for entries in self._batches():
            for is_metrics, group in groupby(entries, key=lambda entry: isinstance(entry, MetricRecord)):
                chunk = list(group)
                if backend is None:
                    self._lose(len(chunk), "it could not be opened")
                elif is_metrics:
                    records = [entry for entry in chunk if isinstance(entry, MetricRecord)]
                    self._guarded(partial(backend.write, records), count=len(records))
                else:
                    for work in chunk:
                        if not isinstance(work, MetricRecord):
                            self._guarded(partial(work, backend), count=1)
        if backend is not None:
            self._guarded(partial(backend.close, self._closing or RunStatus.FAILED), count=0)

    def _opened(self) -> TrackingBackend | None:
        opened: list[TrackingBackend] = []
        self._guarded(lambda: opened.append(self._open_backend()), count=0)
        return opened[0] if opened else None

    def _batches(self) -> Iterator[list[MetricRecord | _Work]]:
        """Yield what was queued, in order, at most once per interval, until the tracker closes and nothing is left."""
        while True:
            with self._changed:
                self._in_hand = 0
                self._changed.wait_for(lambda: self._queue or self._closing is not None)
                self._changed.wait_for(lambda: self._closing is not None, timeout=self._batch_interval_s)
                entries = list(self._queue)
                self._queue.clear()
                self._in_hand = len(entries)
            if not entries:
                return
            yield entries

    def _guarded(self, call: Callable[[], None], *, count: int) -> None:
        """Call the backend; whatever it raises is its failure alone, and costs `count` entries."""
        try:
            call()
        except Exception as error:  # the border between a run and a backend that we do not know
            _logger.debug("%s tracking failed", self._name, exc_info=True)
            self._lose(count, f"{type(error).__name__}: {error}")
