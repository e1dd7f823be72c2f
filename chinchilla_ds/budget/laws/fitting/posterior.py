"""The default fit: the surface with weak priors, and draws of its constants from their posterior."""

from dataclasses import dataclass, replace

import numpy as np

from chinchilla_ds.budget.laws.fitting.draws import SurfaceDraws
from chinchilla_ds.budget.laws.fitting.identify import check_enough, line_problem
from chinchilla_ds.budget.laws.fitting.objective import center
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.sampler import sample
from chinchilla_ds.budget.laws.fitting.surface import (
    FitLoss,
    Form,
    Prior,
    Surface,
    SurfaceFit,
    objective_value,
    surface_of,
)
from chinchilla_ds.budget.laws.fitting.weak_priors import (
    ALPHA_K,
    DELTA,
    LOG_E,
    PRIOR_NAMES,
    PRIOR_SD,
    SCALE_FLOOR,
    TIMES_REACHED,
    CentredRuns,
    PenalisedMinimum,
    centred_runs,
    jacobian,
    log_posterior,
    penalised_minimum,
    prior_values,
    residuals,
)
from chinchilla_ds.errors import DataError

FEWEST_RUNS = 8
"""With fewer, the posterior is little else than the priors."""
SMALLEST_EXPONENT = 0.01
"""Least alpha and beta of losses that fall with N and D: fits to eight runs of public tables have .2 and more.

Draws have positive ones only, so that at a negative optimum they could not move."""
PRIOR_DECIDES = 0.8
"""Standard deviation of a posterior over that of its prior, above which the prior says more than the runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PosteriorFit:
    """A surface with weak priors, and the draws around it."""

    fit: SurfaceFit
    draws: SurfaceDraws | None
    """Six columns, also where k is 1; None if the runs do not identify the surface."""


def fit_posterior(runs: RunTable, /, *, form: Form, seed: int) -> PosteriorFit:
    """Return the surface of greatest posterior density, and draws from the posterior.

    Args:
        runs: at least 8 runs.
        form: whether k is fitted or 1.
        seed: of the draws.

    Raises:
        DataError: too few runs.
    """
    if len(runs) < FEWEST_RUNS:
        raise DataError(f"{len(runs)} runs are too few for a law with an interval; it takes {FEWEST_RUNS} or more")
    check_enough(runs, num_parameters=5 if form is Form.ADDITIVE else 6)
    centred = centred_runs(runs, free_outer_exponent=form is not Form.ADDITIVE)
    minimum = penalised_minimum(centred)
    residual = residuals(centred, minimum.q[None])[0]
    theta = centred.to_units(minimum.q[None])[0]
    fit = SurfaceFit(
        surface=surface_of(theta),
        form=Form.ADDITIVE if form is Form.ADDITIVE else Form.SKALING,
        objective=FitLoss.HUBER,
        delta=DELTA,
        objective_value=objective_value(residual, objective=FitLoss.HUBER, delta=DELTA),
        gradient_norm=minimum.gradient_norm,
        num_points=len(runs),
        identifiable=True,
        prior=Prior.WEAK,
    )
    line = line_problem(center(runs))
    if reasons := _flat_problems(fit.surface) if line is None else [line]:
        return PosteriorFit(fit=replace(fit, identifiable=False, warnings=tuple(reasons)), draws=None)
    q = _draws(centred, minimum.q, scale=float(np.abs(residual).mean()) + SCALE_FLOOR, seed=seed)
    ratios = _prior_ratios(centred, q)
    fit = replace(fit, warnings=tuple(_warnings(minimum, ratios)), prior_ratios=ratios)
    return PosteriorFit(fit=fit, draws=SurfaceDraws(draws=centred.to_units(q), estimate=theta))


def _flat_problems(surface: Surface) -> list[str]:
    """Return which exponents are too small for losses that fall with N or D."""
    return [
        f"{name} came out at {value:.3g}, below {SMALLEST_EXPONENT:g}: these losses do not fall as {count} rises; "
        f"check the columns of {count} and loss"
        for name, count, value in (("alpha", "N", surface.alpha), ("beta", "D", surface.beta))
        if value < SMALLEST_EXPONENT
    ]


def _draws(centred: CentredRuns, q: Floats, *, scale: float, seed: int) -> Floats:
    """Return draws of q, [draw, 6], by walkers that start from the normal distribution at the minimum."""
    free = centred.free
    slopes = jacobian(centred, q)
    curvature = centred.effective_runs / len(centred.log_loss) * (slopes @ slopes.T) / scale**2
    curvature[range(ALPHA_K, 6), range(ALPHA_K, 6)] += (np.array([1, 1, 1, np.exp(q[LOG_E])]) / PRIOR_SD) ** 2
    curvature = curvature[np.ix_(free, free)] + 1e-8 * np.eye(len(free))
    covariance: Floats = np.linalg.inv(curvature).astype(np.float64)
    spread: Floats = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(free))).astype(np.float64)

    def whole(rows: Floats) -> Floats:
        out = np.zeros((len(rows), 6))
        out[:, free] = rows
        return out

    rows = sample(lambda rows: log_posterior(centred, whole(rows)), start=q[free], spread=spread, seed=seed)
    return whole(rows)


def _prior_ratios(centred: CentredRuns, q: Floats) -> dict[str, float]:
    """Return the standard deviation of the draws over the prior's, of each parameter with a prior that is fitted."""
    ratios = np.std(prior_values(q), axis=0) / PRIOR_SD
    fitted = np.isin(np.arange(ALPHA_K, LOG_E + 1), centred.free)
    return {name: float(ratio) for name, ratio, is_free in zip(PRIOR_NAMES, ratios, fitted, strict=True) if is_free}


def _warnings(minimum: PenalisedMinimum, ratios: dict[str, float]) -> list[str]:
    warnings = []
    if not minimum.confirmed:
        warnings.append(
            f"of {minimum.num_starts} starts only {minimum.times_reached} led to the least value, and it takes "
            f"{TIMES_REACHED} to confirm it: there may be a better surface"
        )
    ruled = [f"{name} ({ratio:.2f})" for name, ratio in ratios.items() if ratio > PRIOR_DECIDES]
    if ruled:
        warnings.append(
            f"the priors say more than these runs about {', '.join(ruled)} (spread of the posterior over that of the "
            "prior): what depends on it is a guess from other sweeps; runs over a wider range of N and D would tell"
        )
    return warnings
