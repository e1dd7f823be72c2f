"""`status.json` in a run's folder: whether the run is running, and how it ended, for scripts that restart it.

The exit code of `deepspeed` does not show it: it is 0 when the launcher itself was killed, and 1 after a signal. Rank
0 writes the file atomically, when a run starts or is resumed and when it ends. A run that was killed with
its ranks still says `running`; its `.lock` is free then.
"""

import json
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from chinchilla_ds.errors import EXIT_CODE_STOPPED, OutputError, reason
from chinchilla_ds.files import write_durably
from chinchilla_ds.processes.endings import Ending
from chinchilla_ds.training.callback import Callback, TrainingState

STATUS_NAME = "status.json"


class State(StrEnum):
    """The state of a run, or how it ended."""

    RUNNING = "running"
    """Running, or killed together with its ranks."""
    FINISHED = "finished"
    """Trained to its plan's end."""
    STOPPED = "stopped"
    """Asked to end; the same command continues."""
    FAILED = "failed"
    """Ended by an error, which `reason` gives."""


class StatusFile(Callback):
    """Writes the file, on rank 0."""

    def __init__(self, folder: Path, *, train_iters: int) -> None:
        """Write that the run is running.

        Args:
            folder: The run's folder.
            train_iters: Steps of its plan.

        Raises:
            OutputError: it cannot be written.
        """
        self._path, self._train_iters = folder / STATUS_NAME, train_iters
        self._training: TrainingState | None = None
        try:
            self._write(State.RUNNING)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {reason(error)}") from None

    def on_train_start(self, state: TrainingState) -> None:
        """Read the step from `state` from now on."""
        self._training = state

    def end(self, ending: Ending) -> None:
        """Write how it ended; a full disk must not hide the reason."""
        state = _state_of(ending)
        stopped_by = None if self._training is None else self._training.stopped_by
        why = stopped_by if ending.exit_code == EXIT_CODE_STOPPED else ending.reason
        try:
            self._write(state, exit_code=ending.exit_code, reason=why or None)
        except OSError as error:
            print(f"{self._path} cannot be written: {reason(error)}; the run has {state}", flush=True)

    def _write(self, state: State, *, exit_code: int | None = None, reason: str | None = None) -> None:
        values = {
            "state": state,
            "step": 0 if self._training is None else self._training.iteration,
            "train_iters": self._train_iters,
            "reason": reason,
            "exit_code": exit_code,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_durably(self._path, json.dumps(values, indent=2) + "\n")


def _state_of(ending: Ending) -> State:
    if ending.exit_code == 0:
        return State.FINISHED
    if ending.exit_code == EXIT_CODE_STOPPED or ending.asked:
        return State.STOPPED
    return State.FAILED
