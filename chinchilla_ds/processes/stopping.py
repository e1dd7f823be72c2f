"""Requests to stop: the current step is finished, the run is saved, and all ranks exit together.

One signal or the file `STOP` in the run's folder is enough, even on a single rank: a request travels with the
loss in the step's own all-reduce, so all ranks know it after the same step, at no cost.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chinchilla_ds.errors import EXIT_CODE_STOPPED

__all__ = ["EXIT_CODE_STOPPED", "SIGNALS", "STOP_FILE", "StopRequest"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SLURM sends SIGUSR1 ahead of the time limit with `--signal=USR1@...`."""
STOP_FILE = "STOP"


class StopRequest:
    """The request to this rank. Its handlers run in the main thread and in the one that watches signals."""

    def __init__(self) -> None:
        self._steps = threading.Event()
        """Set during steps: only then can a stop be honoured."""
        self._taken: int | None = None
        self._done = False

    @contextmanager
    def honoured(self) -> Iterator[None]:
        """Declare that within this block steps are taken and `asked` is checked after each.

        A signal that arrived too late for the last step is raised again at the end of the block, where it is not a
        request.
        """
        self._steps.set()
        try:
            yield
        finally:
            self._steps.clear()
        if self._taken is not None and not self._done:
            signal.raise_signal(self._taken)

    @property
    def can_be_honoured(self) -> bool:
        """Whether the run is between its first and its last step."""
        return self._steps.is_set()

    def take(self, number: int) -> bool:
        """Accept a signal as a request, during steps.

        A second signal of another kind belongs to the first: Ctrl-C reaches a rank as SIGINT from the terminal and as
        SIGTERM from the launcher. Once the run has saved it only exits, and signals have no effect: a
        launcher sends SIGTERM as soon as the first rank has exited.
        """
        if self._done:
            return True
        if not self.can_be_honoured:
            return False
        if self._taken is None:
            self._taken = number
        return True

    def done(self) -> None:
        """Record that the request was honoured."""
        self._done = True

    def asked(self, *, run_folder: Path | None) -> bool:
        """Return whether this rank was asked to stop, by signal or by the file in `run_folder`; None reads no file."""
        return self._taken is not None or (run_folder is not None and (run_folder / STOP_FILE).exists())

    def reason(self, *, run_folder: Path) -> str:
        """Return who asked: the signal's name, the file, or another rank."""
        if self._taken is not None:
            return signal.Signals(self._taken).name
        return f"{run_folder / STOP_FILE}" if (run_folder / STOP_FILE).exists() else "a signal to another rank"
