"""Tells when a rank has begun to train."""

from collections.abc import Callable

from chinchilla_ds.training.callback import Callback, TrainingState


class StartedCallback(Callback):
    """Calls `started` before the first step; stands last, so that every other callback has begun."""

    def __init__(self, started: Callable[[], object]) -> None:
        self._started = started

    def on_train_start(self, state: TrainingState) -> None:
        """Say that the start is over."""
        self._started()
