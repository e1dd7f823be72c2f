"""Signals that a rank has started to train."""

from collections.abc import Callable

from chinchilla_ds.training.callback import Callback, TrainingState


class StartedCallback(Callback):
    """Calls `started` before the first step; comes last, so that every other callback has started."""

    def __init__(self, started: Callable[[], object]) -> None:
        self._started = started

    def on_train_start(self, state: TrainingState) -> None:
        """Call `started`."""
        self._started()
