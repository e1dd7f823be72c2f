"""The output at the end: a sample of text, then a table of what was planned, what was reached, and where it is."""

import sys
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from chinchilla_ds.budget.laws.lookup import LAWS
from chinchilla_ds.budget.prediction import why_no_prediction
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.training.callback import Callback, TrainingState
from chinchilla_ds.units import format_count, format_duration, format_flops

_TRAIN_LOSS_STEPS = 20
"""Steps over which the reached training loss is averaged; a single batch is noise."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss in both units."""

    nats_per_token: float
    bits_per_byte: float | None

    def __str__(self) -> str:
        """Return `4.1234 nats/token, 1.9876 bits/byte`."""
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits/byte"
        return f"{self.nats_per_token:.4f} nats/token{bits}"


class SummaryCallback(Callback):
    """Prints a short table on the rank that owns the loss when training has reached its end."""

    def __init__(
        self,
        *,
        unigram_loss: float | None = None,
        mlflow: MlflowDestination | None = None,
        started_s: float | None = None,
        stream: TextIO | None = None,
        terminal: bool | None = None,
    ) -> None:
        """Collect what the training state does not have.

        Args:
            unigram_loss: nats per token of a unigram model of the same tokenizer on the held-out text.
            mlflow: where the MLflow run is.
            started_s: `time.monotonic()` when the command began; None counts from here.
            stream: standard output unless given.
            terminal: whether to draw in colour; None asks the stream.
        """
        self._unigram_loss = unigram_loss
        self._mlflow = mlflow
        self._started_s = time.monotonic() if started_s is None else started_s
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._losses: deque[float] = deque(maxlen=_TRAIN_LOSS_STEPS)

    def on_step_end(self, state: TrainingState) -> None:
        """Keep the loss of a step that counted."""
        if state.owns_loss and state.step is not None and not state.step.skipped:
            self._losses.append(state.step.loss)

    def on_train_end(self, state: TrainingState) -> None:
        """Print the table."""
        if not state.owns_loss:
            return
        wall_s = time.monotonic() - self._started_s
        rows = [
            *model_rows(state),
            *loss_rows(state, train_losses=self._losses, unigram_loss=self._unigram_loss),
            ("FLOPs spent", spent(state)),
            ("wall time", f"{format_duration(wall_s)}, {format_duration(state.elapsed_s)} of it training"),
            *place_rows(state, mlflow=self._mlflow),
        ]
        _print_table(rows, note=footnote(state), stream=self._stream, terminal=self._terminal)


def loss_rows(
    state: TrainingState, *, train_losses: Collection[float], unigram_loss: float | None
) -> list[tuple[str, str]]:
    """Return the rows that compare the predicted, reached and unigram losses.

    Bits per byte of the training and unigram losses use the held-out text's tokens per byte.

    Args:
        state: the training state at the end.
        train_losses: losses of the last steps, nats per token.
        unigram_loss: nats per token of a unigram model on the held-out text.
    """
    held_out = state.evaluation
    bits_per_nat = held_out.bits_per_byte / held_out.loss if held_out is not None and held_out.loss > 0 else None

    def loss(nats: float) -> Loss:
        return Loss(nats_per_token=nats, bits_per_byte=None if bits_per_nat is None else nats * bits_per_nat)

    prediction, why_none = state.plan.prediction, why_no_prediction(state.plan)
    rows = [("predicted loss *", f"{prediction.loss:.4f} nats/token by {prediction.loss_law}")]
    if why_none is not None:
        rows = [("predicted loss", f"none: {why_none}")]
    if train_losses:
        count = len(train_losses)
        of = "the last step" if count == 1 else f"mean of the last {count} steps"
        rows.append(("train loss", f"{loss(sum(train_losses) / count)} ({of})"))
    if state.departure is not None:
        more = f", and {state.departures - 1} times before" if state.departures > 1 else ""
        rows.append(("loss curve", f"{state.departure}{more}"))
    elif state.expected is not None:
        rows.append(("loss curve", "within the 95 % band that its own beginning predicted"))
    if held_out is not None:
        rows.append(("held-out loss", str(loss(held_out.loss))))
    if unigram_loss is not None:
        rows.append(("unigram model", f"{loss(unigram_loss)} (same tokenizer, held-out)"))
    return rows


def footnote(state: TrainingState) -> str:
    """Return the caveats for comparing the predicted loss, where there is one, with the reached one.

    Source: the 32k-piece tokenizer is that of Hoffmann et al. 2022 (arXiv:2203.15556), appendix A.
    """
    if why_no_prediction(state.plan) is not None:
        return "Only bits per byte are comparable between tokenizers."
    text = "* nats per token of the law's own tokenizer and text (Hoffmann et al.: 32k pieces, MassiveText)"
    law = LAWS.get(state.plan.prediction.loss_law)
    factor = 1.0 if law is None else law.extrapolation(compute_budget_flops=state.plan.compute_budget_flops)
    if law is not None and factor > 1.0:
        text += (
            f", extrapolated: the budget lies {factor:,.3g} times outside the {law.min_flops:.0e} to "
            f"{law.max_flops:.0e} FLOPs it was fitted on"
        )
    return f"{text}. Only bits per byte are comparable between tokenizers."


def shorten(path: str) -> str:
    """Return a path relative to the working directory if it lies below it."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else path


def model_rows(state: TrainingState) -> list[tuple[str, str]]:
    """Return the rows of parameters and tokens."""
    plan, shape = state.plan, state.plan.shape
    size = f"{shape.num_layers} layers, hidden {shape.hidden_size}, {shape.padded_vocab_size} vocabulary"
    per_param = state.consumed_tokens / plan.num_params
    return [
        ("N", f"{format_count(plan.num_params)} parameters ({size})"),
        ("D", f"{format_count(state.consumed_tokens)} tokens, {per_param:.1f} per parameter"),
    ]


def spent(state: TrainingState) -> str:
    """Return the FLOPs spent and their share of the budget."""
    budget = state.plan.compute_budget_flops
    return (
        f"{format_flops(state.flops_spent)}, {state.flops_spent / budget:.1%} of the budget of {format_flops(budget)}"
    )


def place_rows(state: TrainingState, *, mlflow: MlflowDestination | None) -> list[tuple[str, str]]:
    """Return the rows with the places of everything."""
    written: list[str] = [name for name in ("checkpoint", "plan") if name in state.artifacts]
    rows = [(name, shorten(state.artifacts[name])) for name in written]
    if mlflow is not None:
        rows.append(("MLflow run", f"{mlflow.run_name} in {mlflow.short_uri}"))
        rows.append(("MLflow UI", mlflow.ui_command))
    return rows


def plain_table(rows: list[tuple[str, str]], *, note: str) -> str:
    """Return unboxed, unwrapped lines, so that a command in them can be copied."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([*(f"{name:<{width}}  {value}" for name, value in rows), note])


def _print_table(rows: list[tuple[str, str]], *, note: str, stream: TextIO, terminal: bool) -> None:
    """Print a boxed table in a terminal and unboxed, unwrapped lines elsewhere, so that a command can be copied."""
    if not terminal:
        print(f"\n{plain_table(rows, note=note)}", file=stream, flush=True)
        return
    console = Console(file=stream, force_terminal=True)
    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, highlight=False, markup=False)
    console.print(note, style="dim", highlight=False, markup=False)


class SampleCallback(Callback):
    """Prints the sample of text at the end of the run, on the rank that owns the loss."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        """Print to `stream`, standard output unless given."""
        self._stream = stream or sys.stdout

    def on_train_end(self, state: TrainingState) -> None:
        """Print prompt and continuation separately."""
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
