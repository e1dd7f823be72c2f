"""Whether a running run's loss is where its own beginning said it would be."""

import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from chinchilla_ds.budget.laws.curves.outlook import (
    BAND_WIDTH,
    LossOutlook,
    OutlookPoint,
    ScheduleTable,
    fit_outlook,
)

WINDOW = 10
"""Steps whose mean loss is compared with the band of such a mean: a single batch may be hard."""
LONG_WINDOW = 20
"""The same for a small rise among noisy losses."""
FALSE_ALARMS = 0.01
"""Runs of pure noise per run that say that they have left their band, at most."""
FIRST_SHARE = 0.1
"""Share of the run from which on its own beginning is fitted."""
WARMUP_SHARE, LEAST_STEPS = 1.25, 40
"""Lengths of warm-up, and steps after them, before the first fit."""
GROWTH = 1.1
"""Steps in multiples of those of the last fit at which it is fitted again."""


@dataclass(frozen=True, kw_only=True)
class BandDeparture:
    """A loss above the band."""

    since: int
    """First step above."""
    excess: float
    """Mean of the last 10 losses less the upper end of its band, nats per token; once it is over, the largest."""
    until: int | None = None
    """Last step above; None: it has not ended."""

    def __str__(self) -> str:
        """Return `0.08 above the 95 % band since step 3,100`."""
        ended = "" if self.until is None else f", until step {self.until:,}"
        return f"{self.excess:.2f} above the 95 % band since step {self.since:,}{ended}"


class LossWatch:
    """Fits the beginning of a run as it goes, and compares the steps after it with what it predicts.

    The loss has left its band when the mean of the last 10 lies above the 95 % band of such a mean, and this or the
    mean of the last 20 is so far above that noise alone would not do it once in a hundred runs. It is back when both
    means are within their bands. What is above is not fitted, so that the law does not follow it. A loss below the
    band is good news, and another law: it is fitted from there on.
    """

    def __init__(self, schedule: Callable[[], ScheduleTable], *, warmup_steps: int, train_iters: int) -> None:
        """Watch a run.

        Args:
            schedule: Returns what is planned; called before the first fit.
            warmup_steps: Steps of its warm-up, whose losses are not used.
            train_iters: Steps of the whole run.
        """
        self._make_schedule, self._warmup = schedule, warmup_steps
        self._schedule: ScheduleTable | None = None
        self._first_fit = max(round(FIRST_SHARE * train_iters), round(WARMUP_SHARE * warmup_steps) + LEAST_STEPS)
        self._next_fit = self._first_fit
        self._step, self._loss = array("q"), array("d")
        self._outlook: LossOutlook | None = None
        self._recent: deque[tuple[int, float, OutlookPoint]] = deque(maxlen=LONG_WINDOW)
        self._certain = -NormalDist().inv_cdf(FALSE_ALARMS / max(train_iters, 1))
        """Standard deviations of a mean that noise alone does not exceed in a run."""
        self._largest = 0.0
        self._is_below = False
        """Whether the loss was below the band and has not been fitted since."""
        self.point: OutlookPoint | None = None
        """What was expected of the last step; None before the first fit."""
        self.departure: BandDeparture | None = None
        """The last time that the loss was above the band."""

    @property
    def is_above(self) -> bool:
        """Whether the loss is above the band."""
        return self.departure is not None and self.departure.until is None

    def add(self, loss: float, *, step: int) -> None:
        """Add the loss of an optimizer step, counted from 1; a step that is repeated replaces the later ones."""
        if self._step and step <= self._step[-1]:
            self._go_back(step - 1)
        if step <= self._warmup:
            return
        self._step.append(step)
        self._loss.append(loss)
        if self._outlook is not None:
            self.point = self._outlook.at(step)
            self._recent.append((step, loss, self.point))
            self._compare()
        if step >= self._next_fit and self._excess(WINDOW) <= 0:
            self._fit(before=step + 1)

    def resume(self, steps: "array[int]", losses: "array[float]", *, above: BandDeparture | None) -> None:
        """Take over the steps of an earlier process.

        Args:
            steps: Steps taken, rising.
            losses: Their losses.
            above: The departure that has not ended.
        """
        self._step, self._loss = steps, losses
        self._forget(lambda at: at <= self._warmup)
        self.departure = above
        last = above.since - 1 if above is not None else self._step[-1] if self._step else 0
        if last >= self._first_fit:
            self._fit(before=last + 1)
        if self._outlook is not None:
            for step, loss in list(zip(self._step, self._loss, strict=True))[-LONG_WINDOW:]:
                self._recent.append((step, loss, self._outlook.at(step)))

    def _forget(self, is_forgotten: Callable[[int], bool]) -> None:
        """Leave the losses of some steps out of the fits to come."""
        remaining = [(step, loss) for step, loss in zip(self._step, self._loss, strict=True) if not is_forgotten(step)]
        self._step, self._loss = (
            array("q", [step for step, _ in remaining]),
            array("d", [loss for _, loss in remaining]),
        )

    def _go_back(self, step: int) -> None:
        self._forget(lambda at: at > step)
        self._recent.clear()
        self.departure = None

    def _fit(self, *, before: int) -> None:
        """Fit the steps before one, if they are enough."""
        steps, losses = np.array(self._step), np.array(self._loss)
        known = steps < before
        if known.sum() < LEAST_STEPS:
            self._next_fit = before + LEAST_STEPS
            return
        if self._schedule is None:
            self._schedule = self._make_schedule()
        self._outlook = fit_outlook(self._schedule, step=steps[known], loss=losses[known])
        self._next_fit, self._is_below = max(before, round(GROWTH * before)), False

    def _excess(self, window: int, *, noise_width: float = BAND_WIDTH, sign: int = 1) -> float:
        """Return by how much the mean of the last losses lies beyond its band; -inf if there are fewer.

        Args:
            window: Number of losses.
            noise_width: Width of the band in standard deviations of the mean's noise.
            sign: 1 above, -1 below.
        """
        if len(self._recent) < window:
            return -math.inf
        last = list(self._recent)[-window:]
        gap = sum(sign * (loss - point.loss) for _, loss, point in last) / window
        spread = sum(point.spread for _, _, point in last) / window
        return gap - math.hypot(BAND_WIDTH * spread, noise_width * last[-1][2].noise / math.sqrt(window))

    def _compare(self) -> None:
        """Compare the last steps with the band."""
        excess, step = self._excess(WINDOW), self._recent[-1][0]
        if len(self._recent) < WINDOW:
            return
        if self.is_above:
            assert self.departure is not None
            since = self.departure.since
            self._largest = max(self._largest, excess)
            self.departure = BandDeparture(since=since, excess=excess)
            if max(excess, self._excess(LONG_WINDOW)) <= 0:
                self.departure = BandDeparture(since=since, excess=self._largest, until=self._turns()[1])
                self._forget(lambda at: at >= since)
        elif excess > 0 and max(self._excess(n, noise_width=self._certain) for n in (WINDOW, LONG_WINDOW)) > 0:
            self.departure = BandDeparture(since=self._turns()[0], excess=excess)
            self._largest = excess
        elif not self._is_below and self._excess(WINDOW, sign=-1, noise_width=self._certain) > 0:
            first = self._recent[-WINDOW][0]
            self._is_below, self._next_fit = True, step + LEAST_STEPS
            self._forget(lambda at: at < first)

    def _turns(self) -> tuple[int, int]:
        """Return, of the last steps, the one from which on the losses are high, all in all, and the one up to which."""
        steps = [at for at, _, _ in self._recent]
        high = [loss - point.loss - point.noise / 2 - point.spread for _, loss, point in self._recent]
        return steps[int(np.argmax(np.cumsum(high[::-1])[::-1]))], steps[int(np.argmax(np.cumsum(high)))]
