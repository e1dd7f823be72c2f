"""The surface with weak priors: its six parameters, what is minimised, and the minimum from several starts.

The parameters q are (p, t, alpha k, beta k, log k, log(E / least loss)), where e^p and e^t are the two terms, each to
the power of k, at the geometric mean of N and D and over the least loss of the table. In these the data determine p and
t well and nearly apart from the rest, and the priors are independent. Draws and starts are rows, [m, 6].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers, RunTable

P, T, ALPHA_K, BETA_K, LOG_K, LOG_E = range(6)

PRIOR_MEAN = np.array([0.30, 0.30, np.log(0.7), 0.65])
"""Means of alpha k, beta k, log k and E / least loss."""
PRIOR_SD = np.array([0.15, 0.15, 0.40, 0.15])
"""Published laws lie within about one of these: alpha k and beta k from .1 to .5, k from .35 to 1, and E from a half to
nearly all of the least loss that anybody reached. See docs/fitting.md for the tables."""
PRIOR_NAMES = ("alpha k", "beta k", "log k", "E / least loss")
LARGEST_EFFECTIVE_RUNS = 20.0
"""What any number of runs may count as. Neighbouring runs of a sweep share the error of the form: two hundred of them
do not pin down an extrapolation as two hundred independent ones would."""
DELTA = 1e-3
"""Huber's delta, in log loss: that of Hoffmann et al. 2022."""
SCALE_FLOOR = 3e-4
"""Least mean absolute log residual that is believed: exact runs would otherwise have an infinite likelihood."""
LARGEST_PARAMETER = 60.0
START_OUTER_EXPONENTS = (0.35, 0.8, 0.55, 1.3, 0.2)
START_IRREDUCIBLE_SHARES = (0.4, 0.75, 0.1, 0.9)
SAME_MINIMUM = 1e-5
"""Difference of the objective, in units of log likelihood, below which two starts have reached the same minimum."""
TIMES_REACHED = 2
MAX_ITERATIONS = 400
GRADIENT_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredRuns:
    """The runs as logarithms over their means, the loss over the least one."""

    log_params: Floats
    """[n]."""
    log_tokens: Floats
    """[n]."""
    log_loss: Floats
    """[n], at least 0."""
    mean_log_params: float
    mean_log_tokens: float
    least_log_loss: float
    free: Integers
    """The parameters that are fitted; without LOG_K, k is 1."""

    @property
    def effective_runs(self) -> float:
        """Return n / (1 + n / 20), which counts in place of n."""
        count = len(self.log_loss)
        return count / (1 + count / LARGEST_EFFECTIVE_RUNS)

    def to_units(self, q: Floats, /) -> Floats:
        """Return (log A, log B, log E, alpha, beta, log k) of parameters, tokens and nats, [m, 6]."""
        k = np.exp(q[:, LOG_K])
        out: Floats = np.stack(
            [
                (q[:, P] + self.least_log_loss + q[:, ALPHA_K] * self.mean_log_params) / k,
                (q[:, T] + self.least_log_loss + q[:, BETA_K] * self.mean_log_tokens) / k,
                q[:, LOG_E] + self.least_log_loss,
                q[:, ALPHA_K] / k,
                q[:, BETA_K] / k,
                q[:, LOG_K],
            ],
            axis=1,
        )
        return out


def centred_runs(runs: RunTable, /, *, free_outer_exponent: bool) -> CentredRuns:
    """Return the runs in the form that the objective takes."""
    log_params, log_tokens, log_loss = (np.log(column) for column in (runs.num_params, runs.num_tokens, runs.loss))
    means = float(log_params.mean()), float(log_tokens.mean()), float(log_loss.min())
    return CentredRuns(
        log_params=log_params - means[0],
        log_tokens=log_tokens - means[1],
        log_loss=log_loss - means[2],
        mean_log_params=means[0],
        mean_log_tokens=means[1],
        least_log_loss=means[2],
        free=np.array([P, T, ALPHA_K, BETA_K, *([LOG_K] if free_outer_exponent else []), LOG_E]),
    )


def residuals(centred: CentredRuns, q: Floats, /) -> Floats:
    """Return log L_predicted - log L_observed, [m, n]."""
    k = np.exp(q[:, LOG_K, None])
    inside = np.exp((q[:, P, None] - q[:, ALPHA_K, None] * centred.log_params) / k)
    inside += np.exp((q[:, T, None] - q[:, BETA_K, None] * centred.log_tokens) / k)
    np.log(inside, out=inside)
    inside *= k
    np.exp(inside, out=inside)
    inside += np.exp(q[:, LOG_E, None])
    np.log(inside, out=inside)
    inside -= centred.log_loss
    return inside


def misfit(residual: Floats, /) -> Floats:
    """Return the sum over runs of Huber's loss, with the floor of its scale, [m]."""
    size = np.abs(residual)
    inner = np.minimum(size, DELTA)
    size -= 0.5 * inner
    size *= inner
    out: Floats = size.sum(axis=-1) + residual.shape[-1] * DELTA * SCALE_FLOOR
    return out


def prior_values(q: Floats, /) -> Floats:
    """Return what has a prior: alpha k, beta k, log k and E over the least loss, [m, 4]."""
    return np.concatenate([q[:, ALPHA_K : LOG_K + 1], np.exp(q[:, LOG_E:])], axis=1)


def prior_scores(q: Floats, /) -> Floats:
    """Return how many standard deviations these lie from the priors' means, [m, 4]."""
    out: Floats = (prior_values(q) - PRIOR_MEAN) / PRIOR_SD
    return out


def log_posterior(centred: CentredRuns, q: Floats, /) -> Floats:
    """Return the logarithm of the posterior density up to a constant, [m]; -inf outside what is allowed.

    -n log(sum of |r|) is the likelihood of n Laplace residuals whose unknown scale is integrated out, so that no noise
    level is set by hand; Huber's loss is |r| rounded off at 0, and n_eff counts for n. The prior on E over the least
    loss is a density in that ratio, hence its logarithm as a Jacobian.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        likelihood = -centred.effective_runs * np.log(misfit(residuals(centred, q)))
        value = likelihood - 0.5 * _squared_scores(centred, q) + q[:, LOG_E]
    outside = (q[:, [ALPHA_K, BETA_K]] <= 0).any(axis=1) | (np.abs(q) > LARGEST_PARAMETER).any(axis=1)
    return np.where(np.isfinite(value) & ~outside, value, -np.inf)


def _squared_scores(centred: CentredRuns, q: Floats) -> Floats:
    """Return the sum of squared scores of the parameters that are fitted, [m]."""
    scores = prior_scores(q)[:, np.isin([ALPHA_K, BETA_K, LOG_K, LOG_E], centred.free)]
    out: Floats = np.square(scores).sum(axis=1)
    return out


def jacobian(centred: CentredRuns, q: Floats, /) -> Floats:
    """Return d residual / d q of one q, [6, n]."""
    k = np.exp(q[LOG_K])
    params_term = (q[P] - q[ALPHA_K] * centred.log_params) / k
    tokens_term = (q[T] - q[BETA_K] * centred.log_tokens) / k
    inside = np.logaddexp(params_term, tokens_term)
    share = 1 / (1 + np.exp(q[LOG_E] - k * inside))
    by_params = np.exp(params_term - inside)
    by_tokens = 1 - by_params
    out: Floats = share * np.array(
        [
            by_params,
            by_tokens,
            -by_params * centred.log_params,
            -by_tokens * centred.log_tokens,
            k * (inside - by_params * params_term - by_tokens * tokens_term),
            np.zeros_like(share),
        ]
    )
    out[LOG_E] = 1 - share
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class PenalisedMinimum:
    """The least value that the starts led to."""

    q: Floats
    """[6]."""
    gradient_norm: float
    num_starts: int
    times_reached: int
    """How many starts led to it."""

    @property
    def confirmed(self) -> bool:
        """Whether another start led to the same minimum."""
        return self.times_reached >= TIMES_REACHED


def penalised_minimum(centred: CentredRuns, /) -> PenalisedMinimum:
    """Return the least of n_eff log(sum of Huber) + half the squared prior scores.

    Starts are taken from a spread of k and E until the least value so far has been reached twice, or none is left.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    ends = []
    times = 0
    for count, start in enumerate(_starts(centred), start=1):
        ends.append(
            minimize(
                lambda free: _objective(centred, free),
                start[centred.free],
                jac=True,
                method="BFGS",
                options={"gtol": GRADIENT_TOLERANCE, "maxiter": MAX_ITERATIONS},
            )
        )
        least = min(end.fun for end in ends)
        times = sum(end.fun <= least + SAME_MINIMUM for end in ends)
        if count >= FEWEST_STARTS and times >= TIMES_REACHED:
            break
    best = min(ends, key=lambda end: end.fun)
    return PenalisedMinimum(
        q=_full(centred, best.x),
        gradient_norm=float(np.linalg.norm(best.jac)),
        num_starts=len(ends),
        times_reached=times,
    )


FEWEST_STARTS = 4


def _starts(centred: CentredRuns) -> Iterator[Floats]:
    exponents = START_OUTER_EXPONENTS if LOG_K in centred.free else (1.0,)
    for shares in (START_IRREDUCIBLE_SHARES[:2], START_IRREDUCIBLE_SHARES[2:]):
        for k in exponents:
            for share in shares:
                term = np.log(0.7 * (1 - share))
                yield np.array([term, term, 0.27, 0.27, np.log(k), np.log(share)])


def _full(centred: CentredRuns, free: Floats) -> Floats:
    q = np.zeros(6)
    q[centred.free] = free
    return q


def _objective(centred: CentredRuns, free: Floats) -> tuple[float, Floats]:
    """Return the value and its gradient in the free parameters."""
    q = _full(centred, free)
    if np.abs(q).max() > LARGEST_PARAMETER:
        return 1e9, np.zeros_like(free)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        residual = residuals(centred, q[None])[0]
        total = float(misfit(residual))
        slopes = jacobian(centred, q) @ np.clip(residual, -DELTA, DELTA)
    if not np.isfinite(total):
        return 1e9, np.zeros_like(free)
    gradient = centred.effective_runs / total * slopes
    gradient[ALPHA_K:] += prior_scores(q[None])[0] / PRIOR_SD * [1, 1, 1, np.exp(q[LOG_E])]
    value = centred.effective_runs * np.log(total) + 0.5 * _squared_scores(centred, q[None])[0]
    return float(value), gradient[centred.free]
