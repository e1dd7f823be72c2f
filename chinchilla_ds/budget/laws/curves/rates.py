"""The learning rate of every step, from the rows that a log has of it.

Between two rows the rate is a straight line, with two exceptions, or the sums of the laws would begin or end to fall at
the wrong step:

- a **kink**, such as the start of a decay: the lines of the intervals before and after meet inside, and are followed to
  where they meet;
- a **jump**: the rate changes far more than before and after; it has the old value up to the row that has the new one.
"""

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers

_KINK = 0.5
"""Difference of the slopes on both sides, in shares of the steeper one, from which they are two phases."""
_JUMP = 3.0
"""Slope in multiples of those on both sides from which it is a jump."""


def step_rates(step: Integers, rate: Floats, *, warmup_steps: int) -> Floats:
    """Return the learning rate of steps 0 to the last row's, [step + 1].

    Args:
        step: Steps of the rows, rising, [row].
        rate: Their learning rates, [row].
        warmup_steps: Over these the rate rises from 0 to the first row's, in a straight line: step 0 has 0, and step
            `warmup_steps` - 1 the first row's. At most the first row's step.
    """
    last = int(step[-1])
    rates = np.interp(np.arange(last + 1), step, rate)
    rates[:warmup_steps] = np.linspace(0, rate[0], warmup_steps)
    slope = np.diff(rate) / np.diff(step)
    for i in range(1, len(slope) - 1):
        before, here, after = slope[i - 1 : i + 2]
        if here == 0 or before == here == after:
            continue
        steepest = max(abs(before), abs(after))
        inside = np.arange(step[i] + 1, step[i + 1])
        if abs(here) > _JUMP * steepest:
            rates[inside] = rate[i]
        elif min(before, after) <= here <= max(before, after) and abs(after - before) > _KINK * steepest:
            leaving = rate[i] + before * (inside - step[i])
            arriving = rate[i + 1] + after * (inside - step[i + 1])
            rates[inside] = np.minimum(leaving, arriving) if after < before else np.maximum(leaving, arriving)
    return rates


def num_warmup_rows(rate: Floats) -> int:
    """Return how many of the first rows lie in the warm-up: their rate is 0, or lower than the next row's."""
    falls = np.flatnonzero((np.diff(rate) <= 0) & (rate[:-1] > 0))
    return int(falls[0]) if len(falls) else len(rate) - 1
