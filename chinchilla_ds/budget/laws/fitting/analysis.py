"""The analysis behind `chinchilla-ds fit`: outliers, approaches 1 to 3, intervals, and warnings."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from chinchilla_ds.budget.laws.fitting.bootstrap import SurfaceBootstrap, bootstrap_surface
from chinchilla_ds.budget.laws.fitting.draws import SurfaceDraws
from chinchilla_ds.budget.laws.fitting.envelope import fit_envelope
from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit
from chinchilla_ds.budget.laws.fitting.hold_out import FEWEST_RUNS
from chinchilla_ds.budget.laws.fitting.isoflop import ParabolaBias, fit_isoflop, parabola_bias
from chinchilla_ds.budget.laws.fitting.outliers import drop_outliers, outlier_warning
from chinchilla_ds.budget.laws.fitting.posterior import PosteriorFit, fit_posterior
from chinchilla_ds.budget.laws.fitting.predict import hold_out_dear_runs, law_with_intervals, predict
from chinchilla_ds.budget.laws.fitting.result import FitReport
from chinchilla_ds.budget.laws.fitting.runs import RunTable
from chinchilla_ds.budget.laws.fitting.surface import (
    DEFAULT_DELTA,
    FitLoss,
    Form,
    Prior,
    SurfaceFit,
    fit_surface,
    residuals_of,
)
from chinchilla_ds.budget.laws.forms import SurfaceLaw
from chinchilla_ds.budget.laws.lookup import MAX_EXTRAPOLATION
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.errors import ConfigError, DataError

_T = TypeVar("_T")
ALL_APPROACHES = (1, 2, 3)
NOTABLE_BIAS = 0.01
"""Bias of approach 2 that deserves a warning, as a share of N* or D*."""
NOTABLE_FLOPS_RATIO = 1.1
"""Mean deviation of FLOPs from 6 N D above which the two readings of a budget differ visibly."""
LARGEST_UNCONVERGED_SHARE = 0.5
"""Share of the bootstrap's draws without an optimum from which on the constants are not identified."""
FEWEST_DRAWS = 0.9
"""Share of the draws that must give a power law for their percentiles to be reported without a warning."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to fit, and how."""

    approaches: tuple[int, ...] = (3,)
    form: Form = Form.SKALING
    """Form.AUTO is the same with priors."""
    prior: Prior = Prior.WEAK
    objective: FitLoss = FitLoss.HUBER
    delta: float = DEFAULT_DELTA
    """Huber's delta, in log loss. Like the objective, only without priors."""
    leave_out_outliers: bool = False
    num_draws: int = 1000
    """Bootstrap draws of approaches 1 and 2, and of 3 without priors; 0 for none."""
    seed: int = 42
    compute_budget_flops: float | None = None
    """Budget for which N* and D* are requested."""
    points: tuple[tuple[float, float], ...] = ()
    """N and D of the losses that are asked for."""
    hold_out: float | None = None
    """A factor, such as 4: the surface is also fitted to the runs of at most the dearest run's compute over this, and
    predicts the others."""

    @property
    def min_rows(self) -> int:
        """Number of fitted constants: five or six of the surface, or two power laws of two."""
        if 3 not in self.approaches:
            return 4
        return 5 if self.form is Form.ADDITIVE or (self.form is Form.AUTO and self.prior is Prior.NONE) else 6


def analyse(runs: RunTable, /, *, source: str, request: FitRequest) -> FitReport:
    """Return the results of the fit.

    If several approaches are requested, one that fails becomes a warning as long as another gives a result.

    Args:
        runs: Every run that was read.
        source: Where they come from, for messages.
        request: What to fit, and how.

    Raises:
        ConfigError: a compute budget or a frontier of runs that count D in bytes.
        DataError: no approach gives a result; names the reason for each.
    """
    if runs.unit is LossUnit.BYTE and (request.approaches != (3,) or request.compute_budget_flops is not None):
        raise ConfigError(
            f"{source}: compute is 6 N D with D in tokens, and these runs count bytes: say by `bytes_per_token` for "
            "which tokenizer, or fit approach 3 alone, without a budget"
        )
    dropped: tuple[str, ...] | None = None
    if request.leave_out_outliers:
        try:
            decision = drop_outliers(runs, free_outer_exponent=request.form is not Form.ADDITIVE)
        except DataError as error:
            raise DataError([f"{source}: {problem}" for problem in error.problems]) from None
        runs, dropped = runs.select(decision.kept), decision.reasons
    fits, problems = _fits(runs, request)
    if fits.surface is not None and not fits.surface.identifiable:
        problems += _why_not_identified(runs, fits.surface, request)
    law = None if fits.surface is None or not fits.surface.identifiable else fits.surface
    if law is None and fits.envelope is None and fits.isoflop is None:
        raise DataError([f"{source}: {problem}" for problem in problems])
    bias = _bias(runs, fits.isoflop, law=law, request=request)
    report = FitReport(
        source=source,
        runs=runs,
        dropped=dropped,
        surface=fits.surface,
        draws=None if law is None else fits.draws,
        envelope=fits.envelope,
        isoflop=fits.isoflop,
        bias=bias,
        compute_budget_flops=request.compute_budget_flops,
        warnings=(
            *problems,
            *(() if law is None else law.warnings),
            *_outlier_warnings(runs, law, dropped),
            *_form_warnings(fits.surface, request),
            *_draw_warnings(fits, num_draws=request.num_draws),
            *_refused_levels(fits),
            *_bias_warnings(bias),
            *_curve_warnings(runs, request),
            *_flops_warnings(runs, request),
        ),
    )
    return _with_predictions(report, request)


def _with_predictions(report: FitReport, request: FitRequest) -> FitReport:
    """Return the report with the losses and the hold-out that were requested.

    Raises:
        DataError: there is no surface to predict with, or none of the cheap runs.
    """
    law = report.law_with_intervals
    if law is None:
        if request.points or request.hold_out is not None:
            raise DataError(f"{report.source}: only the surface of approach 3 predicts a loss; these runs give none")
        return report
    held_out = None
    if request.hold_out is not None:
        try:
            held_out = hold_out_dear_runs(report.runs, factor=request.hold_out, fit=lambda runs: _law(runs, request))
        except DataError as error:
            raise DataError([f"{report.source}: {problem}" for problem in error.problems]) from None
    return replace(report, predictions=predict(law, request.points), held_out=held_out)


def _law(runs: RunTable, request: FitRequest) -> SurfaceLaw:
    """Return the surface of the runs with its intervals.

    Raises:
        DataError: the runs do not identify it.
    """
    fit, draws = _surface(runs, request)
    if not fit.identifiable:
        raise DataError(list(fit.warnings))
    return law_with_intervals(runs, fit.surface, draws)


def _surface(runs: RunTable, request: FitRequest) -> tuple[SurfaceFit, SurfaceDraws | None]:
    """Return the surface of approach 3 and its draws: from the posterior, or without priors a bootstrap.

    Raises:
        DataError: too few runs.
    """
    if request.prior is Prior.WEAK:
        posterior: PosteriorFit = fit_posterior(runs, form=request.form, seed=request.seed)
        return posterior.fit, posterior.draws
    fit = fit_surface(runs, objective=request.objective, delta=request.delta, form=request.form)
    if not (fit.identifiable and request.num_draws):
        return fit, None
    draws = bootstrap_surface(runs, fit=fit, num_draws=request.num_draws, seed=request.seed)
    if draws.num_not_converged > LARGEST_UNCONVERGED_SHARE * request.num_draws:
        reason = (
            f"{draws.num_not_converged} of {request.num_draws} resampled tables have no optimum: these runs do not "
            "determine the constants; add runs at other D/N for several N"
        )
        return replace(fit, identifiable=False, warnings=(reason,)), None
    return fit, draws


def _why_not_identified(runs: RunTable, fit: SurfaceFit, request: FitRequest) -> list[str]:
    """Return the reasons, and whether the default fit manages these runs."""
    reasons = [f"approach 3: {reason}" for reason in fit.warnings]
    if request.prior is Prior.WEAK:
        return reasons
    try:
        default = fit_posterior(runs, form=Form.SKALING, seed=request.seed).fit
    except DataError:
        return reasons
    if default.identifiable:
        errors = [float(np.abs(residuals_of(each.surface, runs)).mean()) for each in (fit, default)]
        reasons.append(
            "approach 3: the default fit, with k free and weak priors, manages these runs: it misses them by "
            f"{errors[1]:.2%} (mean absolute log residual), this one by {errors[0]:.2%}"
        )
    return reasons


@dataclass(frozen=True, kw_only=True)
class _Fits:
    envelope: FrontierFit | None = None
    isoflop: FrontierFit | None = None
    surface: SurfaceFit | None = None
    draws: SurfaceDraws | None = None

    @property
    def frontiers(self) -> tuple[FrontierFit, ...]:
        return tuple(fit for fit in (self.envelope, self.isoflop) if fit is not None)


def _fits(runs: RunTable, request: FitRequest) -> tuple[_Fits, list[str]]:
    """Return the results of the approaches, and why some have none."""
    problems: list[str] = []

    def attempt(number: int, fit: Callable[[], _T]) -> _T | None:
        if number not in request.approaches:
            return None
        try:
            return fit()
        except DataError as error:
            problems.extend(error.problems)
            return None

    draws, seed = request.num_draws, request.seed
    surface = attempt(3, lambda: _surface(runs, request))
    fits = _Fits(
        envelope=attempt(1, lambda: fit_envelope(runs, num_draws=draws, seed=seed)),
        isoflop=attempt(2, lambda: fit_isoflop(runs, num_draws=draws, seed=seed)),
        surface=None if surface is None else surface[0],
        draws=None if surface is None else surface[1],
    )
    return fits, problems


def _bias(
    runs: RunTable, isoflop: FrontierFit | None, *, law: SurfaceFit | None, request: FitRequest
) -> ParabolaBias | None:
    """Return approach 2's bias on the surface of approach 3, which is fitted here if it was not requested."""
    if isoflop is None:
        return None
    if law is None:
        try:
            law = fit_surface(runs)
        except DataError:
            return None
    if not law.identifiable:
        return None
    budget = request.compute_budget_flops or float(runs.flops.max())
    return parabola_bias(runs, fit=isoflop, surface=law.surface, compute_budget_flops=budget)


def _form_warnings(surface: SurfaceFit | None, request: FitRequest) -> Iterator[str]:
    by_hold_out = request.form is Form.AUTO and request.prior is Prior.NONE
    if surface is not None and by_hold_out and surface.hold_out is None:
        count = surface.num_points
        yield f"{count} runs are too few to hold some out, so that k stays 1; it takes {FEWEST_RUNS} or more"


def _outlier_warnings(runs: RunTable, law: SurfaceFit | None, dropped: tuple[str, ...] | None) -> Iterator[str]:
    if law is not None and dropped is None:
        num_constants = 5 if law.form is Form.ADDITIVE else 6
        warning = outlier_warning(runs, residuals_of(law.surface, runs), num_constants=num_constants)
        yield from () if warning is None else (warning,)


def _draw_warnings(fits: _Fits, *, num_draws: int) -> Iterator[str]:
    if isinstance(fits.draws, SurfaceBootstrap) and fits.draws.num_not_converged:
        count = fits.draws.num_not_converged
        yield f"{count} of {num_draws} draws of approach 3 did not converge; they are included"
    for fit in fits.frontiers:
        if len(fit.draws) < FEWEST_DRAWS * num_draws:
            yield (
                f"approach {fit.approach} gives no power law in {num_draws - len(fit.draws)} of {num_draws} draws: its "
                "intervals are too narrow; train more sizes at each compute level"
            )


def _refused_levels(fits: _Fits) -> Iterator[str]:
    for fit in fits.frontiers:
        yield from (f"approach {fit.approach} leaves out level {line}" for line in fit.refused)


def _bias_warnings(bias: ParabolaBias | None) -> Iterator[str]:
    if bias is not None and max(abs(bias.num_params), abs(bias.num_tokens)) >= NOTABLE_BIAS:
        yield (
            f"approach 2 is biased: on the surface of approach 3 without any noise, these sizes and levels put N* at "
            f"{bias.compute_budget_flops:.3g} FLOPs {bias.num_params:+.1%} and D* {bias.num_tokens:+.1%} off"
        )


def _curve_warnings(runs: RunTable, request: FitRequest) -> Iterator[str]:
    sizes = Counter(zip(runs.labels, runs.num_params.tolist(), strict=True)) if runs.labels else Counter()
    count = sum(rows for rows in sizes.values() if rows > 1)
    if count and request.approaches != (1,):
        yield (
            f"{count} rows share a run's name and N: approach 1 treats them as training curves, approaches 2 and 3 as "
            "final losses, which points within a curve are not: their learning rate has not decayed yet"
        )


def _flops_warnings(runs: RunTable, request: FitRequest) -> Iterator[str]:
    ratio = float(np.exp(np.log(runs.flops / (6 * runs.num_params * runs.num_tokens)).mean()))
    if not 1 / NOTABLE_FLOPS_RATIO < ratio < NOTABLE_FLOPS_RATIO:
        yield (
            f"the runs' FLOPs are {ratio:.3g} times 6 N D on average: approach 3 reads a budget as 6 N D, approaches 1 "
            "and 2 as the runs' FLOPs"
        )
    budgets = [] if request.compute_budget_flops is None else [request.compute_budget_flops]
    for budget in [*budgets, *(6 * num_params * num_tokens for num_params, num_tokens in request.points)]:
        times = max(budget / runs.flops.max(), runs.flops.min() / budget)
        if times > MAX_EXTRAPOLATION:
            side = "above" if budget > runs.flops.max() else "below"
            yield (
                f"{budget:.3g} FLOPs lie {times:.3g} times {side} all runs, beyond {MAX_EXTRAPOLATION:.0f} times: the "
                "intervals hold only if the form of the law does"
            )
