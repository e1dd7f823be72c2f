"""Approach 3: the loss surface L(N, D) = E + (A / N^alpha + B / D^beta)^k fitted to a table of runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from chinchilla_ds.budget.laws.fitting.hold_out import HoldOut, hold_out
from chinchilla_ds.budget.laws.fitting.identify import check_enough, edge_warnings, problems
from chinchilla_ds.budget.laws.fitting.objective import Points, center, residuals
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.solve import Solution, solve
from chinchilla_ds.budget.laws.lookup import Optimum
from chinchilla_ds.errors import DataError


class FitLoss(StrEnum):
    """The function of r = log L_predicted - log L_observed that is summed over the runs."""

    HUBER = "huber"
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond: the paper's objective."""
    LAD = "lad"
    """|r|: least absolute deviations, the limit of huber / delta as delta goes to 0."""
    SQUARED = "squared"
    """r^2 / 2: least squares on the log loss."""


class Form(StrEnum):
    """Whether the outer exponent k is fixed, fitted, or chosen."""

    ADDITIVE = "additive"
    """k = 1: the paper's form."""
    SKALING = "skaling"
    """k is fitted."""
    AUTO = "auto"
    """With priors, k is fitted; without, only if that predicts held-out runs better: see `hold_out`."""


class Prior(StrEnum):
    """What is known before the runs."""

    WEAK = "weak"
    """Wide normal priors on alpha k, beta k, log k and E over the least loss: see `weak_priors`."""
    NONE = "none"
    """Nothing: the surface that fits best, with a bootstrap for its intervals."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """L(N, D) = E + (A / N^alpha + B / D^beta)^k in nats per token."""

    irreducible_loss: float
    """E, nats per token."""
    params_coefficient: float
    """A."""
    tokens_coefficient: float
    """B."""
    alpha: float
    """Exponent of N."""
    beta: float
    """Exponent of D."""
    outer_exponent: float = 1.0
    """k."""

    def loss(self, *, num_params: float, num_tokens: float) -> float:
        """Return the predicted loss in nats per token; single pass over the data."""
        params_term = self.params_coefficient * math.pow(num_params, -self.alpha)
        tokens_term = self.tokens_coefficient * math.pow(num_tokens, -self.beta)
        return self.irreducible_loss + math.pow(params_term + tokens_term, self.outer_exponent)

    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N and D with the smallest loss on 6 N D = C; k does not move them.

        N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
        G = (alpha A / (beta B))^(1 / (alpha + beta)). The outer power is increasing, so that the sum inside decides.

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.
        """
        total = self.alpha + self.beta
        log_ratio = math.log(self.alpha * self.params_coefficient) - math.log(self.beta * self.tokens_coefficient)
        num_params = math.exp((log_ratio + self.beta * math.log(compute_budget_flops / 6)) / total)
        num_tokens = compute_budget_flops / 6 / num_params
        loss = self.loss(num_params=num_params, num_tokens=num_tokens)
        return Optimum(num_params=num_params, num_tokens=num_tokens, loss=loss)


@dataclass(frozen=True, kw_only=True)
class SurfaceFit:
    """A fitted surface, and how far it can be trusted."""

    surface: Surface
    """The optimum. If `identifiable` is False, its constants are only one of many sets that fit equally well."""
    form: Form
    """The form that was fitted, never `AUTO`."""
    objective: FitLoss
    delta: float
    """Huber's delta, in log loss; not used by the other objectives."""
    objective_value: float
    """The objective summed over the runs."""
    gradient_norm: float
    """Norm of its gradient in (log A, log B, log E, alpha, beta[, log k]), N, D and loss over their geometric means.

    For LAD, the norm of the subgradient whose values at interpolated runs, within [-1, 1], balance the others best.
    """
    num_points: int
    identifiable: bool
    """Whether these runs identify alpha and beta."""
    warnings: tuple[str, ...] = ()
    hold_out: HoldOut | None = None
    """Both forms' errors if the form was chosen by hold-out."""
    prior: Prior = Prior.NONE
    prior_ratios: Mapping[str, float] | None = None
    """Spread of the posterior over that of the prior, by parameter: near 1, the prior decides. None without priors."""


DEFAULT_DELTA = 1e-3
"""Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3."""


def fit_surface(
    runs: RunTable,
    /,
    *,
    objective: FitLoss = FitLoss.HUBER,
    delta: float = DEFAULT_DELTA,
    form: Form = Form.ADDITIVE,
) -> SurfaceFit:
    """Return the surface that minimises the objective summed over the runs.

    Starts from variable projection over a grid of alpha and beta, and ends with Newton's method on exact derivatives;
    for least absolute deviations at the exact vertex. Deterministic. No run is left out: see `drop_outliers`.

    Args:
        runs: the runs; at least as many different (N, D) as parameters.
        objective: what is summed over the runs.
        delta: where Huber's loss turns from square to absolute, in log loss; only for the Huber objective.
        form: whether the outer exponent k is 1, fitted, or chosen by hold-out.

    Raises:
        DataError: too few runs, or a delta that is not above zero.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3, the sum of Huber losses of log-sum-exp residuals;
        Besiroglu et al. 2024 (arXiv:2404.10102) on its optimum. Neither has k.
    """
    if not (math.isfinite(delta) and delta > 0):
        raise DataError(f"delta is {delta:g}; it must be a finite log loss above zero (the paper's is {DEFAULT_DELTA})")
    check_enough(runs, num_parameters=6 if form is Form.SKALING else 5)
    bound = HUBER_DELTA.get(objective, delta)
    trial = hold_out(runs, delta=bound) if form is Form.AUTO else None
    if form is Form.AUTO:
        form = Form.SKALING if trial is not None and trial.prefers_outer_exponent else Form.ADDITIVE
    points = center(runs)
    solution = solve(points, delta=bound, free_outer_exponent=form is Form.SKALING)
    return _describe(points, solution, objective=objective, delta=delta, form=form, trial=trial)


HUBER_DELTA = {FitLoss.LAD: 0.0, FitLoss.SQUARED: math.inf}
"""The objectives that are limits of Huber's: delta to 0 (divided by delta) and to infinity."""


def _describe(
    points: Points, solution: Solution, *, objective: FitLoss, delta: float, form: Form, trial: HoldOut | None
) -> SurfaceFit:
    reasons = problems(points, solution.theta)
    warnings = [*reasons, *edge_warnings(solution.theta)]
    if not solution.confirmed:
        warnings.append("only one of many starts led to this optimum: there may be a better surface")
    if not solution.converged:
        warnings.append(f"the optimiser stopped at a gradient of {solution.gradient_norm:.1e}, not at an optimum")
    return SurfaceFit(
        surface=surface_of(points.to_units(solution.theta[None])[0]),
        form=form,
        objective=objective,
        delta=delta,
        objective_value=objective_value(residuals(points, solution.theta[None])[0], objective=objective, delta=delta),
        gradient_norm=solution.gradient_norm,
        num_points=len(points.log_loss),
        identifiable=not reasons,
        warnings=tuple(warnings),
        hold_out=trial,
    )


def objective_value(residual: Floats, /, *, objective: FitLoss, delta: float) -> float:
    """Return the objective summed over log residuals, [run].

    Args:
        residual: log residuals, [run].
        objective: the function that is summed.
        delta: Huber's delta, in log loss.
    """
    size = np.abs(residual)
    if objective is FitLoss.LAD:
        return float(np.sum(size))
    inner = np.minimum(size, delta) if objective is FitLoss.HUBER else size
    return float(np.sum(inner * (size - 0.5 * inner)))


def residuals_of(surface: Surface, runs: RunTable, /) -> Floats:
    """Return log L_predicted - log L_observed of every run, [run]."""
    inside = surface.params_coefficient * runs.num_params**-surface.alpha
    inside = inside + surface.tokens_coefficient * runs.num_tokens**-surface.beta
    out: Floats = np.log(surface.irreducible_loss + inside**surface.outer_exponent) - np.log(runs.loss)
    return out


def surface_of(theta: Floats, /) -> Surface:
    """Return the surface of (log A, log B, log E, alpha, beta[, log k]) in units of parameters, tokens and nats."""
    log_a, log_b, log_e, alpha, beta = (float(value) for value in theta[:5])
    return Surface(
        irreducible_loss=math.exp(log_e),
        params_coefficient=math.exp(log_a),
        tokens_coefficient=math.exp(log_b),
        alpha=alpha,
        beta=beta,
        outer_exponent=math.exp(theta[5]) if len(theta) > 5 else 1.0,
    )


def theta_of(surface: Surface, /, *, form: Form) -> Floats:
    """Return (log A, log B, log E, alpha, beta[, log k]) of a surface, [p]; the inverse of `surface_of`."""
    constants = [surface.params_coefficient, surface.tokens_coefficient, surface.irreducible_loss]
    theta = [*(math.log(value) for value in constants), surface.alpha, surface.beta]
    return np.array([*theta, math.log(surface.outer_exponent)] if form is Form.SKALING else theta)
