"""Loss spikes: the loss has jumped above the variation of the last steps, and stays there.

A loss x is high when

    x - median > max(WIDTH * 1.4826 * MAD, LEAST_RISE)

over a window of the last WINDOW losses that were not high. Median and MAD, the median absolute deviation (1.4826 of
them are a standard deviation of normal noise), do not follow a few outliers, as mean and deviation would. Losses fall
over a run, so the median lags above the trend, on the safe side. One high loss is an outlier; a spike is
`LASTING` of them in a row.

A rewind restores the last checkpoint from before the spike and passes over the batches since: a spike results from the
combination of weights and batches, not from either alone. Sources: PaLM (Chowdhery et al. 2022, arXiv:2204.02311,
section 5.1) restarts about 100 steps before the spike and skips 200 to 500 batches; OLMo 2 (arXiv:2501.00656, section
3) filters the data behind it. Both are choices of experience, not theory.
"""

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from statistics import median

WINDOW = 128
"""Window of the rule, in losses."""
LEAST_LOSSES = 32
"""Losses needed before the rule applies: the loss falls fast at the start of a run."""
WIDTH = 10.0
LEAST_RISE = 0.2
"""Nats per token; a smaller rise does not justify a rewind, however smooth the loss was."""
LASTING = 5
MAX_REWINDS = 3
"""Most rewinds: a run that keeps spiking is not helped by a fourth."""
_DEVIATIONS_PER_MAD = 1.4826


class Verdict(Enum):
    """Verdict on one loss."""

    ORDINARY = auto()
    HIGH = auto()
    """An outlier so far."""
    SPIKE = auto()
    """The loss that makes it a spike; returned once per spike."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A spike that has lasted."""

    began: int
    """Optimizer step of its first high loss."""
    level: float
    """Median loss before it, nats per token."""
    peak: float
    """Largest loss so far."""

    def __str__(self) -> str:
        """Return `loss spike since step 412: 6.12 where 3.41 was usual`."""
        return f"loss spike since step {self.began}: {self.peak:.2f} where {self.level:.2f} was usual"


class SpikeDetector:
    """Detects spikes; pure and, like the loss, the same on every rank. Start a new one after a rewind."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._high: list[tuple[int, float]] = []
        self.spike: Spike | None = None
        """The current spike, once it has lasted."""

    def add(self, loss: float, *, iteration: int) -> Verdict:
        """Add the finite loss of an optimizer step."""
        assert math.isfinite(loss), "bad batches are passed over before this"
        if not self._is_high(loss):
            self._usual.append(loss)
            self._high.clear()
            self.spike = None
            return Verdict.ORDINARY
        self._high.append((iteration, loss))
        if len(self._high) < LASTING:
            return Verdict.HIGH
        known = self.spike is not None
        self.spike = Spike(
            began=self._high[0][0], level=median(self._usual), peak=max(value for _, value in self._high)
        )
        if len(self._high) >= WINDOW:  # it is not a spike: this is the new level
            self._usual.clear()
        return Verdict.HIGH if known else Verdict.SPIKE

    def _is_high(self, loss: float) -> bool:
        if len(self._usual) < LEAST_LOSSES:
            return False
        middle = median(self._usual)
        mad = median(abs(value - middle) for value in self._usual)
        return loss - middle > max(WIDTH * _DEVIATIONS_PER_MAD * mad, LEAST_RISE)


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Response to a spike: load the newest checkpoint of at most `before` steps, and leave the data where it is."""

    before: int
    """Optimizer steps; a later checkpoint contains the spike."""
    data_step: int
    """Global batch to continue with: those between the checkpoint and this one are passed over."""


def rewind_of(spike: Spike, *, data_step: int, rewinds: int) -> Rewind | None:
    """Return the rewind for a spike, or None after MAX_REWINDS of them.

    Args:
        spike: The spike.
        data_step: Global batches consumed.
        rewinds: Number of earlier rewinds in this run.
    """
    if rewinds >= MAX_REWINDS:
        return None
    return Rewind(before=spike.began - 1, data_step=data_step)
