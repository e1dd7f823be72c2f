"""Everything that one `chinchilla-ds fit` found, and the same as plain data: its JSON, and a law file."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chinchilla_ds.budget.laws.fitting.bootstrap import FittedOptimum, SurfaceBootstrap
from chinchilla_ds.budget.laws.fitting.draws import SurfaceDraws
from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit
from chinchilla_ds.budget.laws.fitting.isoflop import ParabolaBias
from chinchilla_ds.budget.laws.fitting.objective import LOG_E
from chinchilla_ds.budget.laws.fitting.predict import HeldOutRuns, Predicted, law_with_intervals
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Form, Prior, Surface, SurfaceFit
from chinchilla_ds.budget.laws.forms import SurfaceLaw
from chinchilla_ds.budget.laws.lookup import LAW_FORMAT, LAW_FORMAT_VERSION, ParamsConvention
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL

INTERVAL_LEVEL = DEFAULT_LEVEL
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
    draws: SurfaceDraws | None = None
    """Draws of its constants, from the posterior or, without priors, a bootstrap; None if there are none."""
    envelope: FrontierFit | None = None
    """Approach 1; None if it was not requested, or has no result."""
    isoflop: FrontierFit | None = None
    """Approach 2; None if it was not requested, or has no result."""
    bias: ParabolaBias | None = None
    """Bias of approach 2, on the surface of approach 3."""
    compute_budget_flops: float | None = None
    """Budget for which N* and D* are requested."""
    predictions: tuple[Predicted, ...] = ()
    """The losses that were asked for, in that order."""
    held_out: HeldOutRuns | None = None
    """A fit to the cheap runs against the dear ones; None if it was not requested."""
    warnings: tuple[str, ...] = ()

    @property
    def law(self) -> Surface | None:
        """The surface, if its constants are known."""
        return self.surface.surface if self.surface is not None and self.surface.identifiable else None

    @cached_property
    def law_with_intervals(self) -> SurfaceLaw | None:
        """The law of which the intervals of the loss, and with priors those of the optimum, are asked."""
        return None if self.law is None else law_with_intervals(self.runs, self.law, self.draws, source=self.source)

    def optimal_interval(self, *, compute_budget_flops: float) -> FittedOptimum | None:
        """Return the intervals of N*, D* and D* / N*, and of the loss of one run there; None without draws.

        Those of a bootstrap are bias-corrected; that of the loss is the same function for all.
        """
        law = self.law_with_intervals
        if law is None or law.uncertainty is None:
            return None
        best = law.optimal(compute_budget_flops=compute_budget_flops)
        loss = law.loss_interval(num_params=best.num_params, num_tokens=best.num_tokens, level=INTERVAL_LEVEL)
        asked = {"compute_budget_flops": compute_budget_flops, "level": INTERVAL_LEVEL}
        optimum = (
            self.draws.optimal_interval(**asked)
            if isinstance(self.draws, SurfaceBootstrap)
            else law.optimal_interval(**asked)
        )
        assert loss is not None
        assert optimum is not None
        return FittedOptimum(
            **asked,
            num_params=optimum.num_params,
            num_tokens=optimum.num_tokens,
            tokens_per_param=optimum.tokens_per_param,
            loss=loss,
        )

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
    if report.draws is None or report.law is None:
        return None
    alpha, beta = report.draws.constants["alpha"], report.draws.constants["beta"]
    draws = beta / (alpha + beta)
    best = report.law.beta / (report.law.alpha + report.law.beta)
    interval = report.draws.interval_of(draws, best, level=INTERVAL_LEVEL)
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
        "prior": None if fit is None else fit.prior.value,
        "prior_ratios": None if fit is None or fit.prior_ratios is None else dict(fit.prior_ratios),
        "hold_out": None if fit is None or fit.hold_out is None else asdict(fit.hold_out),
        "predictions": [asdict(predicted) for predicted in report.predictions],
        "held_out": None if report.held_out is None else _held_out_data(report.held_out),
        "optimal": _optimal(report),
        "approach_1": _frontier_data(report.envelope, report),
        "approach_2": _frontier_data(report.isoflop, report),
        "approach_2_bias": None if report.bias is None else asdict(report.bias),
        "identifiable": report.identifiable,
        "warnings": list(report.warnings),
    }


def law_text(report: FitReport, *, name: str, params_convention: ParamsConvention) -> str:
    """Return the fitted surface as a law file, which `law_file.load_law` reads: JSON with one row per draw.

    Its range is that of the runs. The draws of all six constants are written, with the scatter and the dearest run's
    compute. The additive form without priors has only five, and its file the covariance of (log A, log B, log E, alpha,
    beta) over a bootstrap in their place: the uncertainty of the fit alone. A law per byte says so, as nothing can
    be planned with it.

    Args:
        report: the fit, with an identified surface.
        name: the law's name.
        params_convention: what the runs' N counts.
    """
    data, draws = _law_data(report, name=name, params_convention=params_convention)
    text = json.dumps(data, indent=2, allow_nan=False)
    if draws is None:
        return text + "\n"
    rows = (json.dumps([float(f"{value:.7g}") for value in row], allow_nan=False) for row in draws)
    return text.removesuffix("\n}") + ',\n  "draws": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def _law_data(
    report: FitReport, *, name: str, params_convention: ParamsConvention
) -> tuple[dict[str, Any], tuple[tuple[float, ...], ...] | None]:
    """Return the law file without its draws, and the draws."""
    fit, law = report.surface, report.law_with_intervals
    if fit is None or report.law is None or law is None:
        raise ValueError("no surface was identified")
    only_covariance = fit.prior is Prior.NONE and fit.form is Form.ADDITIVE
    data: dict[str, Any] = {
        "format": LAW_FORMAT,
        "format_version": LAW_FORMAT_VERSION,
        "name": name,
        **constants(report.law),
        "params_convention": params_convention.value,
        "min_flops": law.min_flops,
        "max_flops": law.max_flops,
    }
    if only_covariance or law.uncertainty is None:
        data["covariance"] = None if report.draws is None else _covariance(report.draws).tolist()
    data["source"] = report.source
    if report.runs.unit is not LossUnit.TOKEN:
        data["unit"] = report.runs.unit.value
    if report.held_out is not None:
        data["tested"] = asdict(report.held_out.test)
    if only_covariance or law.uncertainty is None:
        return data, None
    data |= {"scatter": law.uncertainty.scatter, "dearest_flops": law.uncertainty.dearest_flops}
    return data, law.uncertainty.draws


def _covariance(draws: SurfaceDraws) -> Floats:
    """Return the covariance of (log A, log B, log E, alpha, beta), with E / E of the fit - 1 for log E.

    The two have the same covariance to first order, which is all that the delta method uses, and a draw with E near 0
    does not send that of the first to infinity.
    """
    columns = draws.draws[:, :5].copy()
    columns[:, LOG_E] = np.expm1(columns[:, LOG_E] - draws.estimate[LOG_E])
    out: Floats = np.cov(columns, rowvar=False, bias=True)
    return out


def _held_out_data(held_out: HeldOutRuns) -> dict[str, Any]:
    rows = [
        {"run": run.name, "measured": run.measured, "times": run.times, "error": run.error, "inside": run.inside}
        | asdict(run.predicted)
        for run in held_out.runs
    ]
    return {**asdict(held_out.test), "runs": rows}


def _parts(report: FitReport) -> dict[int, object]:
    return {1: report.envelope, 2: report.isoflop, 3: report.surface}


def _standard_errors(report: FitReport) -> dict[str, float] | None:
    spread = exponent_spread(report)
    if report.draws is None or spread is None:
        return None
    return report.draws.standard_errors | spread.standard_errors


def _constant_intervals(report: FitReport) -> dict[str, Any] | None:
    spread = exponent_spread(report)
    if report.draws is None or spread is None:
        return None
    return {"level": INTERVAL_LEVEL, **report.draws.interval(level=INTERVAL_LEVEL), **spread.interval}


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
    if (optimum := report.optimal_interval(compute_budget_flops=budget)) is not None:
        interval = {name: value for name, value in asdict(optimum).items() if name != "compute_budget_flops"}
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
        interval = {"level": INTERVAL_LEVEL, **fit.intervals_at(compute_budget_flops=budget, level=INTERVAL_LEVEL)}
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
