"""Where a running run's loss is heading, from its own beginning and its planned schedule.

No law of other runs is needed: the loss so far is fitted by L = L0 + A S1**-alpha - B D, with S1 and D of `equations`.
The beginning of one run leaves much open, so what is open is kept as an interval:

- alpha runs over a grid, and given alpha the law is linear in L0, A and B: each node has a Gaussian posterior, and a
  weight by how well it fits;
- the kernel of D is that of the public curves of Luo et al. 2025 (arXiv:2503.12811). What a fall of the rate gains is
  seen only once the rate falls: until then B is what it is on those curves, give or take as much;
- a law of three terms misses more the farther it is extrapolated: `MISFIT` per factor e in S1.

A fit takes about 2 ms, whatever the length of the run: losses are averaged over neighbours.
"""

import math
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.curves.curve import curve_at, rate_drops
from chinchilla_ds.budget.laws.curves.equations import MULTI_POWER
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers

BAND_WIDTH = 1.96
"""Half-width of the 95 % band, in standard deviations."""
KERNEL = (1.0, 0.43, 0.58)
"""C, beta and gamma of the multi-power law, fitted to three public runs of 25M and of 100M parameters."""
ALPHAS = np.geomspace(0.1, 1.6, 13)
LEVEL, LEVEL_SPREAD = 0.65, 0.2
"""Prior of L0, in shares of the last loss: the irreducible loss of public tables, and its spread."""
GAIN, GAIN_SPREAD = 0.05, 0.05
"""Prior of B times the peak rate, in shares of the last loss: .045 and .056 on the public curves."""
MISFIT = 0.03
"""Log loss, per factor e in S1 beyond the last step that was fitted."""
LEAST_MISFIT = 0.004
"""Log loss; run-to-run scatter and the misfit within what was fitted."""
MEMORY = 8.0
"""Losses before S1 reached a share of 1 / MEMORY of the present are left out: a power law does not hold so far back."""
_NODES = 512
_NOISE_POINTS = 200
_OUTLYING = 4.0
"""Differences of losses beyond these many standard deviations count as these many."""
_POINTS = 128
_DEPENDENCE = 40.0
"""Points beyond about these many say little more: neighbours miss a law in the same way."""
_HUBER = 1.5
"""Standard deviations of the noise beyond which a loss counts less."""
_REWEIGHTINGS = 4


@dataclass(frozen=True, kw_only=True)
class OutlookPoint:
    """What is expected of the loss of one step, in nats per token."""

    loss: float
    spread: float
    """Standard deviation of what is expected, without the noise of batches."""
    noise: float
    """Standard deviation of a single batch's loss."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % band of a single loss."""
        return self.loss - BAND_WIDTH * math.hypot(self.spread, self.noise)

    @property
    def high(self) -> float:
        """Upper end of the 95 % band of a single loss."""
        return self.loss + BAND_WIDTH * math.hypot(self.spread, self.noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduleTable:
    """A schedule's S1 and D at some of its steps; between them they are straight lines."""

    step: Floats
    summed_rate: Floats
    """S1, [node]."""
    annealing: Floats
    """D over the peak rate, [node]."""

    @classmethod
    def of(cls, rates: Floats, *, warmup_steps: int) -> "ScheduleTable":
        """Return the table of a schedule.

        Args:
            rates: learning rate of steps 0 to the last, [step + 1]; not all 0.
            warmup_steps: steps of its warm-up.
        """
        last = len(rates) - 1
        nodes = np.unique(np.linspace(max(min(warmup_steps, last), 1), last, _NODES).astype(np.int64))
        drops = rate_drops(rates, step=nodes, warmup_steps=warmup_steps)
        curve = curve_at(drops, step=nodes, loss=np.ones(len(nodes)))
        annealed, _ = MULTI_POWER.annealing(np.array(KERNEL), curve)
        return cls(step=nodes.astype(float), summed_rate=curve.summed_rate, annealing=annealed / rates.max())

    def at(self, step: Floats) -> tuple[Floats, Floats]:
        """Return S1 and D at steps, [step] each."""
        return np.interp(step, self.step, self.summed_rate), np.interp(step, self.step, self.annealing)


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutlook:
    """What the beginning of a run says of its loss at every step; between the nodes of its schedule, straight lines."""

    schedule: ScheduleTable
    loss: Floats
    """Expected loss, nats per token, [node]."""
    spread: Floats
    """Its standard deviation, without the noise of a batch, [node]."""
    noise: float
    """Standard deviation of single losses, nats per token."""

    def mean_and_spread(self, step: float) -> tuple[float, float]:
        """Return the expected loss of a step, and its standard deviation without the noise of a batch."""
        nodes = self.schedule.step
        return float(np.interp(step, nodes, self.loss)), float(np.interp(step, nodes, self.spread))

    def at(self, step: float) -> OutlookPoint:
        """Return what is expected of the loss of a step."""
        mean, spread = self.mean_and_spread(step)
        return OutlookPoint(loss=mean, spread=spread, noise=self.noise)


def _design(share: Floats, annealed: Floats) -> Floats:
    """Return the factors of L0, A and -B for each alpha, [alpha, point, 3]."""
    power = share ** -ALPHAS[:, None]
    return np.stack([np.ones_like(power), power, np.broadcast_to(annealed, power.shape)], axis=-1)


def fit_outlook(schedule: ScheduleTable, *, step: Integers, loss: Floats) -> LossOutlook:
    """Fit the beginning of a run.

    Args:
        schedule: What is planned.
        step: Steps so far, rising, after the warm-up, [point].
        loss: Their losses in nats per token, [point].
    """
    noise = _noise(loss)
    total, annealed = schedule.at(step.astype(float))
    recent = total >= total[-1] / MEMORY
    total, annealed, loss, count = _averaged(total[recent], annealed[recent], loss[recent])
    last = float(np.median(loss[-8:]))
    design = _design(total / total[-1], annealed)
    precision = np.diag([1 / (LEVEL_SPREAD * last) ** 2, 1 / last**2, 1 / (GAIN_SPREAD * last) ** 2])
    prior = precision @ np.array([LEVEL * last, (1 - LEVEL) * last, -GAIN * last])
    variance = noise**2 / count + (LEAST_MISFIT * last) ** 2
    certainty = 1 / variance / (1 + len(loss) / _DEPENDENCE)
    pull = np.ones((len(ALPHAS), len(loss)))
    for _ in range(_REWEIGHTINGS):
        weighted = design * (certainty * pull)[:, :, None]
        inverse = np.linalg.inv(np.einsum("api,apj->aij", weighted, design) + precision)
        means = np.einsum("aij,aj->ai", inverse, np.einsum("api,p->ai", weighted, loss) + prior)
        residual = np.abs(loss - np.einsum("api,ai->ap", design, means)) / np.sqrt(variance)
        pull = np.minimum(1, _HUBER / np.maximum(residual, 1e-9))
    offset = means - np.array([LEVEL * last, (1 - LEVEL) * last, -GAIN * last])
    huber = np.where(residual <= _HUBER, residual**2, 2 * _HUBER * residual - _HUBER**2)
    misfit = huber @ (certainty * variance)
    score = -0.5 * (misfit + np.einsum("ai,ij,aj->a", offset, precision, offset)) + 0.5 * np.linalg.slogdet(inverse)[1]
    weights = np.exp(score - score.max())
    return _outlook(
        schedule, scale=float(total[-1]), weights=weights / weights.sum(), means=means, covariances=inverse, noise=noise
    )


def _outlook(
    schedule: ScheduleTable, *, scale: float, weights: Floats, means: Floats, covariances: Floats, noise: float
) -> LossOutlook:
    """Return the losses and spreads at the nodes of a schedule, from the posterior at each alpha."""
    design = _design(schedule.summed_rate / scale, schedule.annealing)
    losses = np.einsum("ani,ai->an", design, means)
    variances = np.einsum("ani,aij,anj->an", design, covariances, design)
    loss = weights @ losses
    variance = weights @ (variances + (losses - loss) ** 2)
    misfit = np.abs(loss) * (LEAST_MISFIT + MISFIT * np.abs(np.log(schedule.summed_rate / scale)))
    return LossOutlook(schedule=schedule, loss=loss, spread=np.sqrt(variance + misfit**2), noise=noise)


def _noise(loss: Floats) -> float:
    """Return a standard deviation of single losses that is rather too large, from the last ones' differences.

    Differences hardly trend. Of few of them, the standard deviation is uncertain: two standard errors are added.
    """
    differences = np.diff(loss[-_NOISE_POINTS:])
    differences -= np.median(differences)
    widest = _OUTLYING * 1.4826 * np.median(np.abs(differences))
    deviation = np.sqrt(np.mean(np.clip(differences, -widest, widest) ** 2) / 2)
    return float(deviation * (1 + 2 * np.sqrt(0.75 / len(differences))))


def _averaged(total: Floats, annealed: Floats, loss: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return means over neighbours, and how many each is of."""
    bounds = np.unique(np.linspace(0, len(loss), min(_POINTS, len(loss)) + 1).astype(int))[:-1]
    count = np.diff(np.r_[bounds, len(loss)])
    return (*(np.add.reduceat(values, bounds) / count for values in (total, annealed, loss)), count.astype(float))
