"""ProgressCallback: a bar in a terminal, occasional lines in a log."""

import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from chinchilla_ds.training.callback import Callback, TrainingState
from chinchilla_ds.units import format_count, format_duration, format_flops

_WINDOW_STEPS = 20
"""Optimizer steps over which the displayed speed is averaged."""
_LINES_PER_RUN = 20
_LINE_INTERVAL_S = 10.0
_REFRESH_INTERVAL_S = 0.25
_BAR_MIN_COLUMNS = 110
"""Terminals narrower than this get shorter numbers and no bar."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast the run goes, over the last steps."""

    tokens_per_s: float
    mfu: float | None
    """Share of the peak, 0 to 1; None if the peak is unknown."""
    seconds_left: float | None
    """Training time left, evaluation left out."""


class SpeedMeter:
    """Mean speed over a window of steps, by the state's own clock."""

    def __init__(self, state: TrainingState) -> None:
        self._samples: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW_STEPS + 1)
        self._sample(state)

    def update(self, state: TrainingState) -> Speed:
        """Add one step and return the speed."""
        self._sample(state)
        (start_s, start_tokens, start_flops), (end_s, end_tokens, end_flops) = self._samples[0], self._samples[-1]
        elapsed_s = max(end_s - start_s, 1e-9)
        tokens_per_s = (end_tokens - start_tokens) / elapsed_s
        peak = state.peak_flops_per_s
        tokens_left = max(state.plan.num_tokens - state.consumed_tokens, 0)
        return Speed(
            tokens_per_s=tokens_per_s,
            mfu=(end_flops - start_flops) / elapsed_s / peak if peak else None,
            seconds_left=tokens_left / tokens_per_s if tokens_per_s else None,
        )

    def _sample(self, state: TrainingState) -> None:
        self._samples.append((state.elapsed_s, state.consumed_tokens, state.flops_spent))


class ProgressCallback(Callback):
    """Shows step, loss, tokens/s, FLOPs spent, MFU if the peak is known, and time left; on the loss's rank only.

    A terminal gets a bar. Anything else gets plain lines: the first step, the last, every twentieth of the run, and
    at least one in ten seconds.
    """

    def __init__(self, *, stream: TextIO | None = None, terminal: bool | None = None) -> None:
        """Choose where to print.

        Args:
            stream: standard output unless given.
            terminal: whether to draw a bar; None asks the stream.
        """
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._meter: SpeedMeter | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._shown_at_s = 0.0
        self._shown_iteration = -1

    def on_train_start(self, state: TrainingState) -> None:
        """Draw the empty bar."""
        if not state.owns_loss:
            return
        self._meter = SpeedMeter(state)
        if self._terminal:
            self._bar = _bar(Console(file=self._stream, force_terminal=True))
            total = state.plan.batch.train_iters
            self._task = self._bar.add_task("train", total=total, completed=state.iteration, numbers="")
            self._bar.start()

    def on_step_end(self, state: TrainingState) -> None:
        """Show the step, unless one was shown a moment ago."""
        if self._meter is None:
            return
        speed = self._meter.update(state)
        for note in state.notes:
            self._print(f"{_step(state)} | {note}")
        if self._is_due(state):
            self._shown_at_s, self._shown_iteration = time.monotonic(), state.iteration
            self._show(state, speed=speed)

    def on_evaluation_end(self, state: TrainingState) -> None:
        """Print one line with the held-out loss, above the bar if there is one."""
        if self._meter is None or state.evaluation is None:
            return
        result = state.evaluation
        line = f"held-out loss {result.loss:.4f} nats/token, {result.bits_per_byte:.4f} bits/byte"
        self._print(f"{_step(state)} | {line}")

    def on_close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_stop(self, state: TrainingState) -> None:
        """Report who stopped the run, at which step, and how to resume it."""
        if self._meter is not None:
            why = f"stopped by {state.stopped_by}; saved in {state.artifacts['checkpoint']}"
            self._print(f"{_step(state)} | {why}; the same command continues")
        self.on_close()

    def on_train_end(self, state: TrainingState) -> None:
        """Close the bar, so that later output is printed below it."""
        self.on_close()

    def _is_due(self, state: TrainingState) -> bool:
        train_iters = state.plan.batch.train_iters
        if state.data_step >= train_iters or self._shown_iteration < 0:
            return True
        waited_s = time.monotonic() - self._shown_at_s
        if self._bar is not None:
            return waited_s >= _REFRESH_INTERVAL_S
        share = _LINES_PER_RUN * state.iteration // train_iters
        return waited_s >= _LINE_INTERVAL_S or share > _LINES_PER_RUN * self._shown_iteration // train_iters

    def _show(self, state: TrainingState, *, speed: Speed) -> None:
        if self._bar is None:
            self._print(f"{_step(state)} | {describe_step(state, speed=speed)}")
            return
        wide = _is_wide(self._bar.console)
        numbers = describe_step(state, speed=speed) if wide else describe_step_briefly(state, speed=speed)
        self._bar.update(self._task, completed=state.iteration, numbers=numbers, refresh=True)

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)


def describe_step(state: TrainingState, *, speed: Speed) -> str:
    """Return the numbers of the last step in one line, `|` between them."""
    step, budget = state.step, state.plan.compute_budget_flops
    loss = "loss -" if step is None else f"loss {step.loss:.4f}"
    parts = [
        f"{loss} (skipped)" if step is not None and step.skipped else loss,
        f"{format_count(speed.tokens_per_s)} tokens/s",
        f"{state.flops_spent:.2e} of {budget:.2e} FLOPs ({state.flops_spent / budget:.0%})",
    ]
    if speed.mfu is not None:
        parts.append(f"MFU {speed.mfu:.1%}")
    if speed.seconds_left is not None:
        parts.append(f"{format_duration(speed.seconds_left)} left")
    return " | ".join(parts)


def describe_step_briefly(state: TrainingState, *, speed: Speed) -> str:
    """Return the same numbers, short enough to fit beside the step in 80 columns."""
    budget = state.plan.compute_budget_flops
    parts = [
        "loss -" if state.step is None else f"loss {state.step.loss:.3f}",
        f"{format_count(speed.tokens_per_s)} tok/s",
        f"{state.flops_spent / budget:.0%} of {format_flops(budget)}",
    ]
    if speed.mfu is not None:
        parts.append(f"MFU {speed.mfu:.0%}")
    if speed.seconds_left is not None:
        parts.append(f"{format_duration(speed.seconds_left)} left")
    return "  ".join(parts)


def _step(state: TrainingState) -> str:
    total = str(state.plan.batch.train_iters)
    return f"step {state.iteration:>{len(total)}}/{total}"


def _is_wide(console: Console) -> bool:
    return console.width >= _BAR_MIN_COLUMNS


def _bar(console: Console) -> Progress:
    count, numbers = "{task.completed:.0f}/{task.total:.0f}", "{task.fields[numbers]}"
    narrow = (TextColumn(f"{count}  {numbers}"),)
    wide = (TextColumn(f"step {count}"), BarColumn(bar_width=16), TextColumn(numbers))
    return Progress(*(wide if _is_wide(console) else narrow), console=console, auto_refresh=False)
