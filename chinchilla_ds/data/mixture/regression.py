"""Loss as a function of the mixture: four regressions, each a sum of fixed terms with fitted coefficients.

Shapes: n = runs, m = mixtures evaluated, k = sources, p = terms.

A regression's settings (penalty, length scales) are fitted once, on all runs. The rest is linear in the losses, so
that a bootstrap only solves for the coefficients again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import cho_factor, cho_solve  # type: ignore[import-untyped]
from scipy.optimize import minimize  # type: ignore[import-untyped]

from chinchilla_ds.budget.laws.fitting.runs import Floats

PENALTIES = np.geomspace(1e-7, 1e2, 28)
"""Ridge penalties per run to try, in units where losses have standard deviation 1."""
OFFSETS = (0.01, 0.03, 0.1, 0.3)
"""Values to try for e in log(w + e)."""
_PRIOR_PRECISION = 2.0
_LINEAR_VARIANCE = 4.0
_CONSTANT_VARIANCE = 10.0


class Regression(Protocol):
    """A fitted form: terms of a mixture, and the coefficients for given losses."""

    @property
    def mixtures(self) -> Floats:
        """Mixtures of the runs, [n, k]."""

    def terms(self, weights: Floats, /) -> Floats:
        """Return the terms of mixtures [m, k] as [m, p]."""

    def slopes(self, weights: Floats, /) -> Floats:
        """Return the derivatives of the terms with respect to the weights, [m, p, k]."""

    def solve(self, losses: Floats, counts: Floats, /) -> Floats:
        """Return the coefficients [p] for the runs' standardised losses [n], where run i has weight counts[i]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeRegression:
    """Terms of the weights, with a penalty on all coefficients but the constant's."""

    form: "TermForm"
    penalty: float
    mixtures: Floats
    """Mixtures of the runs, [n, k]."""

    def terms(self, weights: Floats, /) -> Floats:
        """Return the terms, [m, p]."""
        return self.form.terms(weights)

    def slopes(self, weights: Floats, /) -> Floats:
        """Return their derivatives, [m, p, k]."""
        return self.form.slopes(weights)

    def solve(self, losses: Floats, counts: Floats, /) -> Floats:
        """Return the coefficients, [p]."""
        runs = self.terms(self.mixtures)
        weighted = runs * counts[:, None]
        normal = weighted.T @ runs + self.penalty * _shrunk(runs)
        return np.asarray(np.linalg.solve(normal, weighted.T @ losses), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelRegression:
    """Gaussian process: one term per run, the covariance with it.

    The covariance of two mixtures is the sum of a constant's, a plane's, and that of a smooth function of log(w + e)
    with a length scale for each source.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sections 2.2 and 5.4.1.
    """

    mixtures: Floats
    """Mixtures of the runs, [n, k]."""
    inverse_scales: Floats
    """1 / length, in log(w + e), [k]."""
    amplitude: float
    """Variance of the smooth part, in units where losses have variance 1."""
    noise: float
    """Variance of a run's loss about the function."""
    offset: float
    """e of log(w + e)."""

    def _smooth(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the smooth part's covariance [m, n] and the differences [m, n, k]."""
        logs = np.log(weights + self.offset) * self.inverse_scales
        difference = logs[:, None] - (np.log(self.mixtures + self.offset) * self.inverse_scales)[None]
        smooth: Floats = self.amplitude * np.exp(-0.5 * np.sum(difference**2, axis=2))
        return smooth, difference

    def terms(self, weights: Floats, /) -> Floats:
        """Return the covariances with the runs, [m, n]."""
        out: Floats = self._smooth(weights)[0] + _LINEAR_VARIANCE * weights @ self.mixtures.T + _CONSTANT_VARIANCE
        return out

    def slopes(self, weights: Floats, /) -> Floats:
        """Return their derivatives with respect to the weights, [m, n, k]."""
        smooth, difference = self._smooth(weights)
        inner = self.inverse_scales / (weights + self.offset)
        out: Floats = -smooth[:, :, None] * difference * inner[:, None] + _LINEAR_VARIANCE * self.mixtures[None]
        return out

    def solve(self, losses: Floats, counts: Floats, /) -> Floats:
        """Return the coefficients, [n]; 0 for runs of weight 0."""
        drawn = np.flatnonzero(counts)
        covariance = self.terms(self.mixtures[drawn])[:, drawn] + np.diag(self.noise / counts[drawn])
        out = np.zeros(len(self.mixtures))
        out[drawn] = np.linalg.solve(covariance, losses[drawn])
        return out


@dataclass(frozen=True, kw_only=True)
class TermForm:
    """The terms of a ridge regression, in addition to a constant and the weights themselves."""

    products: bool = False
    """w_i w_j for all pairs (Scheffe 1958, Experiments with mixtures, JRSS B 20, 344)."""
    offset: float | None = None
    """e of the terms log(w_i + e), scaled to the range -1 to 0; steep where a source is rare, like the terms of
    Draper and St. John 1977 (Technometrics 19, 37). None: no such terms."""

    def terms(self, weights: Floats) -> Floats:
        """Return [m, p]."""
        parts = [np.ones((len(weights), 1)), weights]
        if self.products:
            first, second = np.triu_indices(weights.shape[1], 1)
            parts.append(weights[:, first] * weights[:, second])
        if self.offset is not None:
            parts.append(np.log((weights + self.offset) / (1 + self.offset)) / np.log(1 / self.offset + 1))
        return np.hstack(parts)

    def slopes(self, weights: Floats) -> Floats:
        """Return the derivatives of the terms with respect to the weights, [m, p, k]."""
        num, k = weights.shape
        identity = np.broadcast_to(np.eye(k), (num, k, k))
        parts = [np.zeros((num, 1, k)), identity]
        if self.products:
            first, second = np.triu_indices(k, 1)
            parts.append(np.eye(k)[first] * weights[:, second, None] + np.eye(k)[second] * weights[:, first, None])
        if self.offset is not None:
            parts.append(identity / (weights + self.offset)[:, :, None] / np.log(1 / self.offset + 1))
        return np.concatenate(parts, axis=1)


def fit_linear(weights: Floats, losses: Floats, /) -> Regression:
    """Return the ridge regression on the weights alone.

    Source: one of RegMix's two regressions, Liu et al. 2024 (arXiv:2407.01492).
    """
    return _best_ridge([TermForm()], weights=weights, losses=losses)


def fit_quadratic(weights: Floats, losses: Floats, /) -> Regression:
    """Return the ridge regression on the weights and their products."""
    return _best_ridge([TermForm(products=True)], weights=weights, losses=losses)


def fit_log_terms(weights: Floats, losses: Floats, /) -> Regression:
    """Return the ridge regression on the weights and log(w + e)."""
    return _best_ridge([TermForm(offset=offset) for offset in OFFSETS], weights=weights, losses=losses)


def _best_ridge(forms: Sequence[TermForm], *, weights: Floats, losses: Floats) -> Regression:
    """Return the form and penalty with the smallest leave-one-out error, in closed form (Allen 1974, PRESS)."""
    best, least = None, np.inf
    for form in forms:
        runs = form.terms(weights)
        for penalty in PENALTIES * len(losses):
            hat = runs @ np.linalg.solve(runs.T @ runs + penalty * _shrunk(runs), runs.T)
            error = float(np.sum(((losses - hat @ losses) / np.maximum(1 - np.diag(hat), 1e-6)) ** 2))
            if error < least:
                best, least = RidgeRegression(form=form, penalty=float(penalty), mixtures=weights), error
    assert best is not None
    return best


def _shrunk(runs: Floats) -> Floats:
    """Return the penalty's matrix: 1 for every term but the constant, whose tiny value keeps the system solvable."""
    return np.diag(np.r_[1e-9, np.ones(runs.shape[1] - 1)])


def fit_gaussian_process(weights: Floats, losses: Floats, /) -> Regression:
    """Return the Gaussian process with the largest marginal likelihood under weak priors on its settings."""
    k = weights.shape[1]
    start = np.r_[-np.ones(k), 0.0, -3.0, -3.0]  # log of: inverse scales, amplitude, noise, offset
    bounds = [(-5.0, 2.0)] * k + [(-6.0, 6.0), (-12.0, 2.0), (-7.0, 0.0)]
    optimum = minimize(
        _negative_log_posterior, start, args=(weights, losses), jac=True, method="L-BFGS-B", bounds=bounds
    )
    return _process(optimum.x, weights)


def _process(theta: Floats, weights: Floats) -> KernelRegression:
    amplitude, noise, offset = np.exp(theta[-3:]).tolist()
    return KernelRegression(
        mixtures=weights, inverse_scales=np.exp(theta[:-3]), amplitude=amplitude, noise=noise, offset=offset
    )


def _negative_log_posterior(theta: Floats, weights: Floats, losses: Floats) -> tuple[float, Floats]:
    """Return minus the log marginal likelihood and log prior, and its gradient, [k + 3]."""
    process = _process(theta, weights)
    smooth, difference = process._smooth(weights)
    num = len(losses)
    covariance = smooth + _LINEAR_VARIANCE * weights @ weights.T + _CONSTANT_VARIANCE
    factor = cho_factor(covariance + process.noise * np.eye(num), lower=True)
    solved = cho_solve(factor, losses)
    half = 0.5 * (cho_solve(factor, np.eye(num)) - np.outer(solved, solved))  # d/d covariance
    by_smooth = half * smooth
    by_offset = -process.inverse_scales * process.offset / (weights + process.offset)  # d log(w + e) / d log e, negated
    stretch = (difference * (by_offset[:, None] - by_offset[None])).sum(axis=2)
    prior = (theta - np.r_[-np.ones(len(theta) - 3), 0.0, -3.0, -3.0]) * np.r_[
        np.ones(len(theta) - 3) / _PRIOR_PRECISION, 0.1, 0.05, 1.0
    ]
    gradient = np.r_[
        -np.einsum("ij,ijk->k", by_smooth, difference**2),
        by_smooth.sum(),
        process.noise * np.trace(half),
        (by_smooth * stretch).sum(),
    ]
    value = 0.5 * losses @ solved + np.log(np.diag(factor[0])).sum()
    value += 0.5 * prior @ (theta - np.r_[-np.ones(len(theta) - 3), 0.0, -3.0, -3.0])
    return float(value), gradient + prior


FORMS: Mapping[str, Callable[[Floats, Floats], Regression]] = {
    "linear": fit_linear,
    "quadratic": fit_quadratic,
    "log terms": fit_log_terms,
    "gaussian process": fit_gaussian_process,
}
