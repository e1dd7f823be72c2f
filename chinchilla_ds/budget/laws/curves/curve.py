"""Loss curves: the points of a run, and its learning rate in the few numbers that the laws need of it.

The laws sum over the tens of thousands of steps of a schedule. It is smooth almost everywhere, so steps are grouped
between rows, and a group acts as one drop of the rate at its mean place: 5e-5 nats from the full sum on average, 6e-4
at worst, where a fast decay begins (`tests/unit/budget/laws/curves/test_curve.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.budget.laws.curves.rates import step_rates
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers, Mask

WARMUP_GROUPS = 48
EVEN_GROUPS = 256
"""Groups of equal length after the warm-up."""
FALLING_GROUPS = 128
"""Groups of equal fall of the rate, beside these: a short decay at the end of a long log has few of equal length."""
MOST_POINTS = 600
"""Points that a law is fitted to; a longer log is averaged over neighbours."""
_SMALLEST_DROP = 1e-9
"""Falls of the rate within a group, in shares of its peak, that are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RateDrops:
    """The falls of a learning rate, in groups."""

    total: Floats
    """Summed learning rate up to each step, [step + 1]."""
    size: Floats
    """Fall within each group, [group]; negative in warm-up."""
    log_rate: Floats
    """Mean log of the rate after each fall, [group]."""
    total_before: Floats
    """Summed learning rate before each fall, [group]."""
    step_before: Floats
    """Last step before each fall, [group]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """One run: its points, and what the laws need of its schedule at each."""

    step: Integers
    """Steps of the points, [point]."""
    loss: Floats
    """Nats per token, [point]."""
    drops: RateDrops
    summed_rate: Floats
    """S1, the summed learning rate at each point, [point]."""
    since: Floats
    """Summed learning rate from each group to each point, [point, group]; 0 before the group."""
    age: Floats
    """Steps from each group to each point, [point, group]; 0 before the group."""

    def __len__(self) -> int:
        return len(self.step)

    def select(self, points: slice | Mask | Integers, /) -> "LossCurve":
        """Return the curve at some of its points; the schedule stays whole."""
        return curve_at(self.drops, step=self.step[points], loss=self.loss[points])

    def pieces(self, most_points: int) -> Iterator["LossCurve"]:
        """Yield the curve in pieces, for logs of every step."""
        for start in range(0, len(self), most_points):
            yield self.select(slice(start, start + most_points))


def loss_curve(*, step: Integers, rate: Floats, loss: Floats, warmup_steps: int) -> LossCurve:
    """Return a run's curve from the rows of its log.

    Args:
        step: Steps of the rows, rising, [row].
        rate: Learning rates, [row].
        loss: Nats per token, [row].
        warmup_steps: As in `step_rates`.
    """
    rates = step_rates(step, rate, warmup_steps=warmup_steps)
    return curve_at(rate_drops(rates, step=step, warmup_steps=warmup_steps), step=step, loss=loss)


def curve_at(drops: RateDrops, *, step: Integers, loss: Floats) -> LossCurve:
    """Return the curve of points on a schedule.

    Args:
        drops: the schedule.
        step: steps of the points, [point].
        loss: nats per token, [point].
    """
    total = drops.total[step]
    return LossCurve(
        step=step,
        loss=loss,
        drops=drops,
        summed_rate=total,
        since=np.maximum(total[:, None] - drops.total_before, 0),
        age=np.maximum(step[:, None] - drops.step_before, 0),
    )


def rate_drops(rates: Floats, *, step: Integers, warmup_steps: int) -> RateDrops:
    """Group the falls of a schedule.

    Args:
        rates: Learning rate of every step, [step + 1].
        step: Steps of the rows. Groups end at rows, so that few are half over when a loss is logged.
        warmup_steps: Steps of the warm-up; its groups are finest at its end, just before the first row.
    """
    total, after = np.cumsum(rates), np.arange(1, len(rates))
    drop = rates[after - 1] - rates[after]
    group = np.searchsorted(_group_ends(np.abs(drop), step=step, warmup_steps=warmup_steps), after)
    weight = np.bincount(group, np.abs(drop))
    matters = weight > _SMALLEST_DROP * rates.max()

    def mean(values: NDArray[np.floating[Any]]) -> Floats:
        return np.asarray(np.bincount(group, np.abs(drop) * values)[matters] / weight[matters])

    return RateDrops(
        total=total,
        size=np.bincount(group, drop)[matters],
        log_rate=mean(np.log(np.maximum(rates[after], _SMALLEST_DROP * rates.max()))),
        total_before=mean(total[after - 1]),
        step_before=mean(after - 1.0),
    )


def _group_ends(drop: Floats, *, step: Integers, warmup_steps: int) -> Integers:
    """Return the last step of every group, rising, [group]."""
    warm = warmup_steps * (1 - (np.arange(WARMUP_GROUPS) / WARMUP_GROUPS) ** 2)
    fallen = np.cumsum(drop[max(warmup_steps - 1, 0) :])[np.maximum(step - warmup_steps, 0) - 1]
    shares = np.floor(fallen / max(fallen[-1], 1e-300) * FALLING_GROUPS)
    even = step[:: -(-len(step) // EVEN_GROUPS)]
    return np.unique(np.r_[warm.astype(int), even, step[:-1][np.diff(shares) > 0], step[-1]])


def thinned(curve: LossCurve, *, most_points: int = MOST_POINTS) -> LossCurve:
    """Return a curve of at most `most_points`: means of neighbours, the loss's in logs, at their middle step."""
    width = -(-len(curve) // most_points)
    if width == 1:
        return curve
    bounds = np.arange(0, len(curve), width)
    count = np.diff(np.r_[bounds, len(curve)])
    return curve_at(
        curve.drops,
        step=np.rint(np.add.reduceat(curve.step, bounds) / count).astype(np.int64),
        loss=np.exp(np.add.reduceat(np.log(curve.loss), bounds) / count),
    )
