"""Everything that one `chinchilla-ds fit` found, and the same as plain data: its JSON, and a law file."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chinchilla_ds.budget.laws.fitting.bootstrap import SurfaceBootstrap
from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit
from chinchilla_ds.budget.laws.fitting.intervals import (
    FEWEST_RUNS_FOR_PERCENTILES,
    bias_corrected_interval,
    percentile_interval,
)
from chinchilla_ds.budget.laws.fitting.isoflop import ParabolaBias
from chinchilla_ds.budget.laws.fitting.runs import RunTable
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Surface, SurfaceFit
from chinchilla_ds.budget.laws.lookup import LAW_FORMAT, LAW_FORMAT_VERSION, ParamsConvention
from chinchilla_ds.budget.laws.loss_unit import LossUnit

INTERVAL_LEVEL = 0.8
"""Probability of every interval: 10th to 90th percentile of the draws."""
CONSTANTS = ("E", "A", "B", "alpha", "beta", "k")


@dataclass(frozen=True, kw_only=True, eq=False)
class FitReport:
    """The results of one call of `fit`."""

    source: str
    """File name, or `mlflow:experiment`."""
    runs: RunTable
    """The fitted runs."""
    dropped: tuple[str, ...] | None = None
    """Runs dropped by the outlier rule, each with the reason; None if the rule was not requested."""
    surface: SurfaceFit | None = None
    """Approach 3; None if it was not requested."""
    bootstrap: SurfaceBootstrap | None = None
    """The surface's bootstrap; None without draws, or if the surface cannot be identified."""
    envelope: FrontierFit | None = None
    """Approach 1; None if it was not requested, or has no result."""
    isoflop: FrontierFit | None = None
    """Approach 2; None if it was not requested, or has no result."""
    bias: ParabolaBias | None = None
    """Bias of approach 2, on the surface of approach 3."""
    compute_budget_flops: float | None = None
    """Budget for which N* and D* are requested."""
    warnings: tuple[str, ...] = ()

    @property
    def law(self) -> Surface | None:
        """The surface, if its constants are known."""
        return self.surface.surface if self.surface is not None and self.surface.identifiable else None

    @property
    def frontiers(self) -> tuple[FrontierFit, ...]:
        """Results of approaches 1 and 2."""
        return tuple(fit for fit in (self.envelope, self.isoflop) if fit is not None)

    @property
    def identifiable(self) -> bool:
        """Whether the surface's constants are known; without a surface, whether the frontier is."""
        return self.law is not None if self.surface is not None else bool(self.frontiers)


def constants(surface: Surface) -> dict[str, float]:
    """Return the surface's constants under the names of the formula."""
    values = (
        surface.irreducible_loss,
        surface.params_coefficient,
        surface.tokens_coefficient,
        surface.alpha,
        surface.beta,
        surface.outer_exponent,
    )
    return dict(zip(CONSTANTS, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class ExponentSpread:
    """Uncertainty of the a and b of N* ~ C^a and D* ~ C^b."""

    standard_errors: dict[str, float]
    interval: dict[str, tuple[float, float]]
    """Interval with probability INTERVAL_LEVEL."""


def exponent_spread(report: FitReport) -> ExponentSpread | None:
    """Return the spread of a = beta / (alpha + beta) and b = 1 - a of approach 3; None without draws."""
    if report.bootstrap is None or report.law is None:
        return None
    alpha, beta = report.bootstrap.constants["alpha"], report.bootstrap.constants["beta"]
    best = report.law.beta / (report.law.alpha + report.law.beta)
    draws = beta / (alpha + beta)
    if report.bootstrap.num_points >= FEWEST_RUNS_FOR_PERCENTILES:
        interval = percentile_interval(draws, level=INTERVAL_LEVEL)
    else:
        interval = bias_corrected_interval(draws, estimate=best, level=INTERVAL_LEVEL)
    error = float(np.std(draws))
    return ExponentSpread(
        standard_errors={"a": error, "b": error}, interval={"a": interval, "b": (1 - interval[1], 1 - interval[0])}
    )


def fit_data(report: FitReport) -> dict[str, Any]:
    """Return the report as plain data; unknown values are None."""
    fit = report.surface
    return {
        "source": report.source,
        "approach": [number for number, part in _parts(report).items() if part is not None],
        "form": None if fit is None else fit.form.value,
        **(dict.fromkeys(CONSTANTS) if report.law is None else constants(report.law)),
        "a": None if report.law is None else report.law.beta / (report.law.alpha + report.law.beta),
        "b": None if report.law is None else report.law.alpha / (report.law.alpha + report.law.beta),
        "objective": None if fit is None else fit.objective_value,
        "objective_name": None if fit is None else fit.objective.value,
        "delta": None if fit is None or fit.objective is not FitLoss.HUBER else fit.delta,
        "gradient_norm": None if fit is None else fit.gradient_norm,
        "num_points": len(report.runs),
        "unit": report.runs.unit.value,
        "dropped": list(report.dropped or ()),
        "standard_errors": _standard_errors(report),
        "interval": _constant_intervals(report),
        "hold_out": None if fit is None or fit.hold_out is None else asdict(fit.hold_out),
        "optimal": _optimal(report),
        "approach_1": _frontier_data(report.envelope, report),
        "approach_2": _frontier_data(report.isoflop, report),
        "approach_2_bias": None if report.bias is None else asdict(report.bias),
        "identifiable": report.identifiable,
        "warnings": list(report.warnings),
    }


def law_data(report: FitReport, *, name: str, params_convention: ParamsConvention) -> dict[str, Any]:
    """Return the fitted surface as a law file, which `lookup.load_law` reads.

    Its range is that of the runs. The covariance of (log A, log B, log E, alpha, beta) treats k as known. A law per
    byte says so, as nothing can be planned with it.

    Args:
        report: the fit, with an identified surface.
        name: the law's name.
        params_convention: what the runs' N counts.
    """
    if report.law is None:
        raise ValueError("no surface was identified")
    flops = report.runs.flops
    covariance = None if report.bootstrap is None else report.bootstrap.covariance[:5, :5].tolist()
    return {
        "format": LAW_FORMAT,
        "format_version": LAW_FORMAT_VERSION,
        "name": name,
        **constants(report.law),
        "params_convention": params_convention.value,
        "min_flops": float(flops.min()),
        "max_flops": float(flops.max()),
        "covariance": covariance,
        "source": report.source,
        **({} if report.runs.unit is LossUnit.TOKEN else {"unit": report.runs.unit.value}),
    }


def _parts(report: FitReport) -> dict[int, object]:
    return {1: report.envelope, 2: report.isoflop, 3: report.surface}


def _standard_errors(report: FitReport) -> dict[str, float] | None:
    spread = exponent_spread(report)
    if report.bootstrap is None or spread is None:
        return None
    return report.bootstrap.standard_errors | spread.standard_errors


def _constant_intervals(report: FitReport) -> dict[str, Any] | None:
    spread = exponent_spread(report)
    if report.bootstrap is None or spread is None:
        return None
    return {"level": INTERVAL_LEVEL, **report.bootstrap.interval(level=INTERVAL_LEVEL), **spread.interval}


def _optimal(report: FitReport) -> dict[str, Any] | None:
    """Return N* and D* of the surface; without one, those of the only frontier that was requested."""
    budget = report.compute_budget_flops
    if budget is None:
        return None
    if report.surface is None:
        return _frontier_optimal(report.frontiers[0], budget) if len(report.frontiers) == 1 else None
    if report.law is None:
        return None
    best = report.law.optimal(compute_budget_flops=budget)
    interval = None
    if report.bootstrap is not None:
        found = report.bootstrap.optimal_interval(compute_budget_flops=budget, level=INTERVAL_LEVEL)
        interval = {name: value for name, value in asdict(found).items() if name != "compute_budget_flops"}
    return {
        "flops": budget,
        "num_params": best.num_params,
        "num_tokens": best.num_tokens,
        "tokens_per_param": best.num_tokens / best.num_params,
        "loss": best.loss,
        "interval": interval,
    }


def _frontier_optimal(fit: FrontierFit, budget: float) -> dict[str, Any]:
    params = fit.params_law.at(compute_budget_flops=budget)
    tokens = fit.tokens_law.at(compute_budget_flops=budget)
    interval = None
    if len(fit.draws):
        found = fit.intervals_at(compute_budget_flops=budget, level=INTERVAL_LEVEL)
        interval = {"level": INTERVAL_LEVEL, **found}
    return {
        "flops": budget,
        "num_params": params,
        "num_tokens": tokens,
        "tokens_per_param": tokens / params,
        "loss": None,
        "interval": interval,
    }


def _frontier_data(fit: FrontierFit | None, report: FitReport) -> dict[str, Any] | None:
    if fit is None:
        return None
    interval = {"level": INTERVAL_LEVEL, **fit.exponent_intervals(level=INTERVAL_LEVEL)} if len(fit.draws) else None
    return {
        "a": fit.params_law.exponent,
        "b": fit.tokens_law.exponent,
        "num_params_coefficient": fit.params_law.coefficient,
        "num_tokens_coefficient": fit.tokens_law.coefficient,
        "interval": interval,
        "num_points": len(fit.points),
        "refused": list(fit.refused),
        "optimal": None if report.compute_budget_flops is None else _frontier_optimal(fit, report.compute_budget_flops),
    }
