"""Draws of a surface's constants, from a posterior or a bootstrap, and the percentiles of what follows from them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chinchilla_ds.budget.laws.fitting.intervals import percentile_interval
from chinchilla_ds.budget.laws.fitting.objective import ALPHA, BETA, LOG_A, LOG_B, LOG_E, LOG_K
from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL, Draw


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDraws:
    """Constants of the surface, one row per draw."""

    draws: Floats
    """(log A, log B, log E, alpha, beta[, log k]) in units of parameters, tokens and nats, [draw, parameter]."""
    estimate: Floats
    """The same for the fit itself, [parameter]."""

    @cached_property
    def constants(self) -> dict[str, Floats]:
        """The constants E, A, B, alpha, beta (and k, if it is free) of every draw, [draw] each."""
        return _constants(self.draws)

    @property
    def standard_errors(self) -> dict[str, float]:
        """Standard deviation over the draws of E, A, B, alpha, beta (and k, if it is free)."""
        return {name: float(np.std(values)) for name, values in self.constants.items()}

    @property
    def covariance(self) -> Floats:
        """Covariance over the draws of (log A, log B, log E, alpha, beta[, log k]), [parameter, parameter]."""
        out: Floats = np.cov(self.draws, rowvar=False, bias=True)
        return out

    @property
    def rows(self) -> tuple[Draw, ...]:
        """The draws as `Uncertainty` takes them, with log k = 0 where k is 1."""
        width = LOG_K + 1 - self.draws.shape[1]
        return tuple(map(tuple, np.pad(self.draws, ((0, 0), (0, width))).tolist()))

    def interval(self, *, level: float = DEFAULT_LEVEL) -> dict[str, tuple[float, float]]:
        """Return the interval of every constant."""
        estimates = _constants(self.estimate[None])
        return {
            name: self.interval_of(values, float(estimates[name][0]), level=level)
            for name, values in self.constants.items()
        }

    def interval_of(self, values: Floats, estimate: float, /, *, level: float) -> tuple[float, float]:
        """Return the interval of a quantity.

        Args:
            values: the quantity in every draw, [draw].
            estimate: the same in the fit itself.
            level: probability of the interval.
        """
        return percentile_interval(values, level=level)


def _constants(theta: Floats) -> dict[str, Floats]:
    out = {
        "E": np.exp(theta[:, LOG_E]),
        "A": np.exp(theta[:, LOG_A]),
        "B": np.exp(theta[:, LOG_B]),
        "alpha": theta[:, ALPHA],
        "beta": theta[:, BETA],
    }
    return {**out, "k": np.exp(theta[:, LOG_K])} if theta.shape[1] > LOG_K else out
