"""Losses that a fit predicts, and a fit to the cheap runs of a table against the dear ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.draws import SurfaceDraws
from chinchilla_ds.budget.laws.fitting.posterior import FEWEST_RUNS
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.surface import Surface, residuals_of
from chinchilla_ds.budget.laws.forms import ParamsConvention, SurfaceLaw
from chinchilla_ds.budget.laws.tested import PredictionTest
from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL, Uncertainty
from chinchilla_ds.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The loss of one model, and the interval that holds a single run of it."""

    num_params: float
    num_tokens: float
    loss: float
    """Nats per token."""
    low: float | None
    """None for a fit without draws, as the next."""
    high: float | None
    level: float
    """Probability of the interval."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRun:
    """A dear run, and what a fit to the cheap ones says of it."""

    name: str
    measured: float
    """Nats per token."""
    times: float
    """Its compute over that of the dearest fitted run."""
    predicted: Predicted

    @property
    def error(self) -> float:
        """Return log(predicted / measured)."""
        return float(np.log(self.predicted.loss / self.measured))

    @property
    def inside(self) -> bool:
        """Whether the interval holds it."""
        low, high = self.predicted.low, self.predicted.high
        return low is not None and high is not None and low <= self.measured <= high


@dataclass(frozen=True, kw_only=True)
class HeldOutRuns:
    """The dear runs by rising compute, and the summary that the law file keeps."""

    test: PredictionTest
    runs: tuple[HeldOutRun, ...]


def law_with_intervals(
    runs: RunTable,
    surface: Surface,
    draws: SurfaceDraws | None,
    *,
    name: str = "fit",
    source: str = "",
    params_convention: ParamsConvention = ParamsConvention.TOTAL,
) -> SurfaceLaw:
    """Return a fitted surface as the law that every interval is asked of.

    Args:
        runs: the runs that were fitted.
        surface: the fit.
        draws: draws of its constants; None for a law without intervals.
        name: the law's name.
        source: where the runs come from.
        params_convention: what the runs' N counts.
    """
    uncertainty = None
    if draws is not None:
        compute = runs.num_params * runs.num_tokens
        dearer = np.argsort(compute, kind="stable")[len(runs) // 2 :]
        uncertainty = Uncertainty(
            draws=draws.rows,
            scatter=float(np.abs(residuals_of(surface, runs))[dearer].mean()),
            dearest_flops=6 * float(compute.max()),
        )
    return SurfaceLaw(
        name=name,
        irreducible_loss=surface.irreducible_loss,
        params_coefficient=surface.params_coefficient,
        tokens_coefficient=surface.tokens_coefficient,
        alpha=surface.alpha,
        beta=surface.beta,
        outer_exponent=surface.outer_exponent,
        uncertainty=uncertainty,
        params_convention=params_convention,
        min_flops=float(runs.flops.min()),
        max_flops=float(runs.flops.max()),
        source=source,
    )


def predict(
    law: SurfaceLaw, points: Sequence[tuple[float, float]], /, *, level: float = DEFAULT_LEVEL
) -> tuple[Predicted, ...]:
    """Return the loss of each model, in the order given.

    Args:
        law: the fitted law.
        points: N and D of every model.
        level: probability of the intervals.
    """
    predicted = []
    for num_params, num_tokens in points:
        interval = law.loss_interval(num_params=num_params, num_tokens=num_tokens, level=level)
        low, high = (None, None) if interval is None else interval
        loss = law.loss(num_params=num_params, num_tokens=num_tokens)
        predicted.append(
            Predicted(num_params=num_params, num_tokens=num_tokens, loss=loss, low=low, high=high, level=level)
        )
    return tuple(predicted)


def hold_out_dear_runs(runs: RunTable, /, *, factor: float, fit: Callable[[RunTable], SurfaceLaw]) -> HeldOutRuns:
    """Return what a fit to the runs of at most the dearest run's compute / `factor` says of the others.

    Args:
        runs: all runs.
        factor: above 1.
        fit: returns the law, with draws, of the runs that it is given.

    Raises:
        DataError: nothing can be fitted to the cheap runs.
    """
    compute = runs.num_params * runs.num_tokens
    cheap = compute <= compute.max() / factor
    try:
        law = fit(runs.select(cheap))
    except DataError as error:
        where = f"`hold_out={factor:g}x` leaves {int(cheap.sum())} of {len(runs)} runs to fit"
        advice = _largest_factor(compute, factor=factor)
        raise DataError([f"{where}: {problem}{advice}" for problem in error.problems]) from None
    rows = np.flatnonzero(~cheap)[np.argsort(compute[~cheap], kind="stable")].tolist()
    points = [(float(runs.num_params[row]), float(runs.num_tokens[row])) for row in rows]
    dearest = float(compute[cheap].max())
    held_out = tuple(
        HeldOutRun(
            name=runs.name(row),
            measured=float(runs.loss[row]),
            times=float(compute[row]) / dearest,
            predicted=predicted,
        )
        for row, predicted in zip(rows, predict(law, points), strict=True)
    )
    errors = [abs(run.error) for run in held_out]
    test = PredictionTest(
        factor=factor,
        num_fitted=int(cheap.sum()),
        num_held_out=len(rows),
        median_error=float(np.median(errors)),
        worst_error=max(errors),
        coverage=sum(run.inside for run in held_out) / len(rows),
        level=DEFAULT_LEVEL,
        times=held_out[-1].times,
    )
    return HeldOutRuns(test=test, runs=held_out)


def _largest_factor(compute: Floats, *, factor: float) -> str:
    """Return which smaller factor leaves the fewest runs that a law takes; empty if none does."""
    if len(compute) <= FEWEST_RUNS:
        return ""
    largest = float(compute.max() / np.sort(compute)[FEWEST_RUNS - 1])
    rounded = math.floor(10 * min(largest, 1e9)) / 10
    return f"; `hold_out={rounded:g}x` leaves {FEWEST_RUNS}" if 1 < rounded < factor else ""
