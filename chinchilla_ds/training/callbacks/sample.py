"""SampleCallback: shows what the trained model writes."""

import sys
from typing import TextIO

from chinchilla_ds.training.callback import Callback, TrainingState


class SampleCallback(Callback):
    """Prints the sample of text at the end of the run, on the rank that owns the loss."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        """Print to `stream`, standard output unless given."""
        self._stream = stream or sys.stdout

    def on_train_end(self, state: TrainingState) -> None:
        """Print prompt and continuation, apart."""
        if not state.owns_loss or state.sample is None:
            return
        print(
            f"\nSample. Held-out text given to the model:\n{_indented(state.sample.prompt)}\n"
            f"What it wrote:\n{_indented(state.sample.continuation)}\n",
            file=self._stream,
            flush=True,
        )


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines() or [""])
