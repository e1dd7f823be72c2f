"""How far off a predicted curve may be: an interval about it at each point.

Residuals, or a bootstrap of them, give bands that are far too narrow: what dominates is not noise but the misfit of a
law to a schedule that it has not seen. So the half-width is, in quadrature,

- what the laws miss on every run when it is left out of the fit, its scatter included (the worse of the two laws),
- how far the two laws disagree at the point,
- over sizes, a share per factor e from the nearest fitted size: `SIZE_MISFIT`, or with an anchor `ANCHORED_MISFIT`, and
  `ANCHORED_SHAPE_MISFIT` from one size alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.curves.equations import FORMS
from chinchilla_ds.budget.laws.curves.law import CurveLaw, CurveRun, fit_law
from chinchilla_ds.budget.laws.fitting.runs import Floats

BAND_LEVEL = 0.8
SIZE_MISFIT = 0.015
"""Log loss, per factor e in N. Without an anchor the level is off by 2 % at a factor of 4 from the fitted sizes."""
ANCHORED_MISFIT = 0.003
"""Log loss, per factor e in N, where several sizes give the slopes of the shape."""
ANCHORED_SHAPE_MISFIT = 0.0065
"""The same where one size alone gives the shape: anchored by a tenth of a run of 4 times or a quarter of its size, it
is off by 0.4 to 0.8 % on average, and with this the band holds four points in five."""
SINGLE_RUN_MISFIT = 0.004
"""Log loss, added in quadrature where one run is all there is: its rest, predicted from its beginning, says little
about another schedule. One cosine misses eight other runs by 0.2 to 0.5 % on average."""
_BEGINNING = 2 / 3
"""Share of a single run that is fitted to predict the rest of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveLaws:
    """Both laws, fitted to the same runs, and what they miss on runs that they have not seen."""

    laws: tuple[CurveLaw, ...]
    """The first predicts; the others say how far it can be trusted."""
    misfit: float
    """The 80 % quantile of |log(predicted / measured)| on runs that were left out."""
    sizes: tuple[float, ...]
    """Sizes that were fitted; anchors are not. Empty if the runs have none."""

    def predict(self, run: CurveRun) -> Floats:
        """Return the losses at a run's points, nats per token, [point]."""
        return self.laws[0].predict(run)

    def disagreement(self, run: CurveRun) -> Floats:
        """Return how far the laws are apart at a run's points, in log loss, [point]."""
        logs = np.log([law.predict(run).clip(1e-3) for law in self.laws])
        return np.asarray(logs.max(axis=0) - logs.min(axis=0))

    def half_width(self, run: CurveRun, *, with_disagreement: bool = True) -> Floats:
        """Return the half-width of the 80 % band at a run's points, in log loss, [point]."""
        known = np.hypot(self.misfit, self._size_misfit(run.num_params))
        return np.hypot(known, self.disagreement(run) * with_disagreement)

    def _size_misfit(self, num_params: float | None) -> float:
        if num_params is None or not self.sizes:
            return 0.0
        far = float(np.abs(np.log(np.array(self.sizes) / num_params)).min())
        anchored = ANCHORED_MISFIT if len(self.sizes) > 1 else ANCHORED_SHAPE_MISFIT
        return far * (anchored if num_params in self.laws[0].levels else SIZE_MISFIT)


def fit_laws(runs: Sequence[CurveRun], /) -> CurveLaws:
    """Fit both laws to runs, and to all of them but one, each in turn; at least one run is not an anchor."""
    laws = tuple(fit_law(form, runs) for form in FORMS)
    whole = [run for run in runs if not run.is_anchor]
    misfit = max(float(np.quantile(np.concatenate(list(_misses(law, runs))), BAND_LEVEL)) for law in laws)
    if len(whole) == 1:
        misfit = float(np.hypot(misfit, SINGLE_RUN_MISFIT))
    sizes = {run.num_params for run in whole if run.num_params is not None}
    return CurveLaws(laws=laws, misfit=misfit, sizes=tuple(sorted(sizes)))


def _misses(law: CurveLaw, runs: Sequence[CurveRun]) -> Iterator[Floats]:
    """Yield |log(predicted / measured)| of each run that is not an anchor, by the law of the others."""
    whole = [run for run in runs if not run.is_anchor]
    for run in whole:
        others = [other for other in runs if other is not run]
        fitted = [other for other in others if not other.is_anchor]
        has_its_size = any(other.num_params == run.num_params for other in fitted)
        if has_its_size and (any(map(_falls, fitted)) or not _falls(run)):
            yield np.abs(fit_law(law.form, others, start=law).log_errors(run))
        else:  # the only run of its size, or the only one whose rate falls: its beginning predicts the rest
            beginning, rest = _parts(run)
            yield np.abs(fit_law(law.form, [*others, beginning], start=law).log_errors(rest))


def _falls(run: CurveRun) -> bool:
    return bool((run.curve.drops.size > 0).any())


def _parts(run: CurveRun) -> tuple[CurveRun, CurveRun]:
    at = max(1, round(_BEGINNING * len(run.curve)))
    beginning, rest = run.curve.select(slice(0, at)), run.curve.select(slice(at, None))
    return CurveRun(curve=beginning, num_params=run.num_params), CurveRun(curve=rest, num_params=run.num_params)
