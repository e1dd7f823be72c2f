"""The analysis behind `chinchilla-ds fit`: outliers, approaches 1 to 3, intervals, and warnings."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from chinchilla_ds.budget.laws.fitting.bootstrap import SurfaceBootstrap, bootstrap_surface
from chinchilla_ds.budget.laws.fitting.envelope import fit_envelope
from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit
from chinchilla_ds.budget.laws.fitting.hold_out import FEWEST_RUNS
from chinchilla_ds.budget.laws.fitting.isoflop import ParabolaBias, fit_isoflop, parabola_bias
from chinchilla_ds.budget.laws.fitting.outliers import drop_outliers
from chinchilla_ds.budget.laws.fitting.result import FitReport
from chinchilla_ds.budget.laws.fitting.runs import RunTable
from chinchilla_ds.budget.laws.fitting.surface import DEFAULT_DELTA, FitLoss, Form, SurfaceFit, fit_surface
from chinchilla_ds.budget.laws.lookup import MAX_EXTRAPOLATION
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.errors import ConfigError, DataError

_T = TypeVar("_T")
ALL_APPROACHES = (1, 2, 3)
NOTABLE_BIAS = 0.01
"""Bias of approach 2 that deserves a warning, as a share of N* or D*."""
NOTABLE_FLOPS_RATIO = 1.1
"""Mean deviation of FLOPs from 6 N D above which the two readings of a budget differ visibly."""
FEWEST_DRAWS = 0.9
"""Share of the draws that must give a power law for their percentiles to be reported without a warning."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to fit, and how."""

    approaches: tuple[int, ...] = (3,)
    form: Form = Form.ADDITIVE
    objective: FitLoss = FitLoss.HUBER
    delta: float = DEFAULT_DELTA
    """Huber's delta, in log loss."""
    leave_out_outliers: bool = False
    num_draws: int = 1000
    """Bootstrap draws; 0 for none."""
    seed: int = 42
    compute_budget_flops: float | None = None
    """Budget for which N* and D* are requested."""

    @property
    def min_rows(self) -> int:
        """Number of fitted constants: five or six of the surface, or two power laws of two."""
        if 3 not in self.approaches:
            return 4
        return 6 if self.form is Form.SKALING else 5


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
            decision = drop_outliers(runs)
        except DataError as error:
            raise DataError([f"{source}: {problem}" for problem in error.problems]) from None
        runs, dropped = runs.select(decision.kept), decision.reasons
    fits, problems = _fits(runs, request)
    surface = fits.surface
    if surface is not None and not surface.identifiable:
        problems += [f"approach 3: {reason}" for reason in surface.warnings]
    law = None if surface is None or not surface.identifiable else surface
    if law is None and fits.envelope is None and fits.isoflop is None:
        raise DataError([f"{source}: {problem}" for problem in problems])
    bootstrap = None
    if law is not None and request.num_draws:
        bootstrap = bootstrap_surface(runs, fit=law, num_draws=request.num_draws, seed=request.seed)
    bias = _bias(runs, fits.isoflop, law=law, request=request)
    warnings = [
        *problems,
        *(() if law is None else law.warnings),
        *_form_warnings(surface, request),
        *_draw_warnings(fits, bootstrap, num_draws=request.num_draws),
        *_refused_levels(fits),
        *_bias_warnings(bias),
        *_curve_warnings(runs, request),
        *_flops_warnings(runs, request),
    ]
    return FitReport(
        source=source,
        runs=runs,
        dropped=dropped,
        surface=surface,
        bootstrap=bootstrap,
        envelope=fits.envelope,
        isoflop=fits.isoflop,
        bias=bias,
        compute_budget_flops=request.compute_budget_flops,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, kw_only=True)
class _Fits:
    envelope: FrontierFit | None = None
    isoflop: FrontierFit | None = None
    surface: SurfaceFit | None = None

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
    fits = _Fits(
        envelope=attempt(1, lambda: fit_envelope(runs, num_draws=draws, seed=seed)),
        isoflop=attempt(2, lambda: fit_isoflop(runs, num_draws=draws, seed=seed)),
        surface=attempt(
            3, lambda: fit_surface(runs, objective=request.objective, delta=request.delta, form=request.form)
        ),
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
    if surface is not None and request.form is Form.AUTO and surface.hold_out is None:
        count = surface.num_points
        yield f"{count} runs are too few to hold some out, so that k stays 1; it takes {FEWEST_RUNS} or more"


def _draw_warnings(fits: _Fits, bootstrap: SurfaceBootstrap | None, *, num_draws: int) -> Iterator[str]:
    if bootstrap is not None and bootstrap.num_not_converged:
        yield (f"{bootstrap.num_not_converged} of {num_draws} draws of approach 3 did not converge; they are included")
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
    budget = request.compute_budget_flops
    if budget is None:
        return
    times = max(budget / runs.flops.max(), runs.flops.min() / budget)
    if times > MAX_EXTRAPOLATION:
        side = "above" if budget > runs.flops.max() else "below"
        yield (
            f"{budget:.3g} FLOPs lie {times:.3g} times {side} all runs, beyond {MAX_EXTRAPOLATION:.0f} times: the "
            "intervals hold only if the form of the law does"
        )
