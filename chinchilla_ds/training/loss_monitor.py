"""Tells while a run trains that its loss has left the band that its own beginning predicts.

The maths is in `budget.laws.curves`. It runs on the rank that owns the loss: 15 microseconds a step, and 3 milliseconds
at each of about 25 fits over a run. Nothing that training depends on is written.
"""

import math
from array import array
from pathlib import Path

import numpy as np

from chinchilla_ds.budget.laws.curves.departure import BandDeparture, LossWatch
from chinchilla_ds.budget.laws.curves.outlook import ScheduleTable
from chinchilla_ds.budget.laws.curves.rates import step_rates
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.tracking.metrics_file import METRICS_FILE, read_metrics
from chinchilla_ds.training.callback import TrainingState
from chinchilla_ds.training.callbacks.tracking import EXCESS, SINCE
from chinchilla_ds.training.lr_schedule import learning_rate

_ROWS = 4096
"""Steps at which the schedule is computed; between them it is a straight line."""


class LossMonitor:
    """Called after every step that counts, on the rank that owns the loss."""

    def __init__(self, plan: RunPlan) -> None:
        self._watch = LossWatch(
            lambda: planned_schedule(plan),
            warmup_steps=plan.schedule.warmup_iters,
            train_iters=plan.batch.train_iters,
        )

    def add(self, state: TrainingState) -> None:
        """Compare the step with what was expected of it, and add to `state` what came of it."""
        assert state.step is not None
        was_above = self._watch.is_above
        self._watch.add(state.step.loss, step=state.iteration)
        state.expected, state.departure = self._watch.point, self._watch.departure
        if self._watch.is_above and not was_above:
            state.departures += 1
            state.notes += (f"loss {state.departure}",)
        elif was_above and not self._watch.is_above and state.departure is not None:  # None: the run went back
            state.notes += (f"loss back in its band; it was {state.departure}",)

    def resume(self, state: TrainingState) -> None:
        """Take over the steps that metrics.jsonl records, up to the checkpoint's; without the file, start afresh."""
        steps, losses, above = _recorded(state.run_folder / METRICS_FILE, until=state.iteration)
        self._watch.resume(steps, losses, above=above)
        state.departure, state.departures = above, int(above is not None)


def _recorded(path: Path, *, until: int) -> "tuple[array[int], array[float], BandDeparture | None]":
    """Return steps, losses and the departure that has not ended, from the metrics of steps up to one.

    The steps of departures that have ended are left out, as they were by the process that recorded them.
    """
    steps, losses, above = array("q"), array("d"), None
    for record in read_metrics(path):
        loss = record.metrics.get("train/loss", math.nan)
        if not (math.isfinite(loss) and 0 < record.step <= until):
            continue
        excess, since = (record.metrics.get(name, math.nan) for name in (EXCESS, SINCE))
        is_above = math.isfinite(excess) and 0 < since <= record.step
        first = above.since if above is not None and not is_above else record.step
        while steps and steps[-1] >= min(first, record.step):  # a departure has ended, or the run went back
            steps.pop()
            losses.pop()
        steps.append(record.step)
        losses.append(loss)
        above = BandDeparture(since=int(since), excess=excess) if is_above else None
    return steps, losses, above


def planned_schedule(plan: RunPlan, /) -> ScheduleTable:
    """Return the table of a plan's schedule; step 1 is the first."""
    schedule, train_iters = plan.schedule, plan.batch.train_iters
    turns = [1, schedule.warmup_iters, train_iters - schedule.decay_iters, train_iters]
    steps = np.unique(np.r_[np.linspace(1, train_iters, min(_ROWS, train_iters)).astype(np.int64), turns])
    steps = steps[steps > 0]
    peak = plan.optimizer.learning_rate
    rates = np.array(
        [learning_rate(step - 1, schedule=schedule, peak=peak, train_iters=train_iters) for step in steps.tolist()]
    )
    return ScheduleTable.of(step_rates(steps, rates, warmup_steps=1), warmup_steps=schedule.warmup_iters)
