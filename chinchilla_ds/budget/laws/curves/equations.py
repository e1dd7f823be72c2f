"""Two laws of the loss over a run: a power law in the summed learning rate, less a gain for every fall of the rate.

    L(t) = L0 + A * S1(t)**-alpha - B * D(t),    S1(t) = eta[1] + ... + eta[t], warm-up included

    multi-power  D = sum_k (eta[k-1] - eta[k]) * (1 - (1 + C * eta[k]**-gamma * S_k(t))**-beta),
                 S_k(t) = eta[k] + ... + eta[t]. Source: Luo et al. 2025 (arXiv:2503.12811).
    momentum     D = sum_k (eta[k-1] - eta[k]) * (1 - lambda**(t-k+1)) / (1 - lambda), the closed form of S2, with
                 lambda = exp(-decay). Source: Tissue et al. 2024 (arXiv:2408.11029).

The sums start at step 1: the rises of the warm-up count as negative falls, as in the code of Luo et al. All constants
are positive, and are handled as logs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.curves.curve import LossCurve
from chinchilla_ds.budget.laws.fitting.runs import Floats

BULK = ("L0", "A", "alpha", "B")
"""The constants that both laws have."""
_PIECE = 2000
"""Points that are predicted at a time."""

Annealing = tuple[Floats, list[Floats]]
"""D at each point, and its derivatives in the logs of the kernel's constants, [point] each."""


@dataclass(frozen=True)
class CurveForm:
    """A law of the curve."""

    name: str
    kernel: tuple[str, ...]
    """Constants of D."""
    annealing: Callable[[Floats, LossCurve], Annealing]
    prior: Mapping[str, float]
    """Centres of a weak prior, for constants that the data leave loose."""
    start: Mapping[str, float]
    """Start values of the kernel, for a fit."""
    scale: float
    """D of a finished decay, in multiples of the rate's fall, at the start values."""

    @property
    def constants(self) -> tuple[str, ...]:
        """The constants' names."""
        return (*BULK, *self.kernel)


def predict_with_gradient(form: CurveForm, theta: Floats, curve: LossCurve) -> tuple[Floats, Floats]:
    """Return the losses, [point], and their gradient in the log constants, [point, constant].

    Args:
        form: the law.
        theta: logs of its constants.
        curve: where to predict.
    """
    level, amplitude, alpha, gain = np.exp(theta[: len(BULK)])
    bulk = amplitude * curve.summed_rate**-alpha
    annealed, slopes = form.annealing(np.exp(theta[len(BULK) :]), curve)
    columns = [np.full_like(bulk, level), bulk, -alpha * bulk * np.log(curve.summed_rate), -gain * annealed]
    gradient = np.stack([*columns, *(-gain * slope for slope in slopes)], axis=1)
    return level + bulk - gain * annealed, gradient


def predict(form: CurveForm, theta: Floats, curve: LossCurve) -> Floats:
    """Return the losses at each point, in nats per token, [point].

    Args:
        form: the law.
        theta: logs of its constants.
        curve: where to predict.
    """
    return np.concatenate([predict_with_gradient(form, theta, piece)[0] for piece in curve.pieces(_PIECE)])


def _multi_power(kernel: Floats, curve: LossCurve) -> Annealing:
    c, beta, gamma = kernel
    drop, log_rate = curve.drops.size, curve.drops.log_rate
    x = curve.since * (c * np.exp(-gamma * log_rate))
    log_u = np.log1p(x)
    left = np.exp(-beta * log_u)
    w = left * x / (1 + x)
    slopes = [beta * (w @ drop), beta * ((left * log_u) @ drop), -beta * gamma * (w @ (drop * log_rate))]
    return drop.sum() - left @ drop, slopes


def _momentum(kernel: Floats, curve: LossCurve) -> Annealing:
    (decay,) = kernel
    drop = curve.drops.size
    scale, left = 1 / -np.expm1(-decay), np.exp(-decay * curve.age)
    annealed = scale * (drop.sum() - left @ drop)
    return annealed, [decay * scale * ((curve.age * left) @ drop - annealed * np.exp(-decay))]


MULTI_POWER = CurveForm(
    "multi_power",
    kernel=("C", "beta", "gamma"),
    annealing=_multi_power,
    prior={"C": 1.0, "beta": 0.5, "gamma": 0.5},
    start={"C": 1.0, "beta": 0.5, "gamma": 0.5},
    scale=1.0,
)
"""Its prior is centred on the authors' start values: alone, the data leave these three loose, and predict worse."""
MOMENTUM = CurveForm(
    "momentum", kernel=("decay",), annealing=_momentum, prior={}, start={"decay": 3e-3}, scale=1 / 3e-3
)
FORMS = (MULTI_POWER, MOMENTUM)
