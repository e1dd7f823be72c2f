"""A fitted law of the curve: of one size, or one law for several.

Over sizes N, with the kernel shared (Luo et al. 2025, arXiv:2503.12811, find A, alpha and B to be power laws in N):

    L0 = E + K (N / 1e8)**-kappa,    A, alpha, B = value (N / 1e8)**slope

A and alpha trade off against the level, and so do their slopes: a weak prior keeps these two near 0.

Shapes carry over from size to size, the level L0 less so, because few sizes cannot tell E from kappa: a few points of a
run of the new size, its *anchor*, set it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chinchilla_ds.budget.laws.curves.curve import LossCurve
from chinchilla_ds.budget.laws.curves.equations import CurveForm, predict
from chinchilla_ds.budget.laws.curves.fit import Expansion, Parameters, fit, kernel_prior, named_constants
from chinchilla_ds.budget.laws.fitting.runs import Floats

REFERENCE_PARAMS = 1e8
IRREDUCIBLE = 1.69
"""Loss at infinite size and data, nats per token. Source: Hoffmann et al. 2022 (arXiv:2203.15556)."""
IRREDUCIBLE_SHARE = 0.65
"""Largest irreducible loss, in shares of the lowest level: losses per byte are lower."""
SLOPE_STRENGTH = 0.1
"""Residual, in log loss, of a slope of A or alpha that is 1 from 0: in L = E + A / N^a + B / D^b (Hoffmann et al. 2022,
arXiv:2203.15556) what data gains is the same for all N. With this, three schedules of two public sizes give the slopes
that all nine give, and without it twice as much."""
_LEAST_SLOPE = 0.05
_SHAPES = ("A", "alpha", "B")
_SIZE_VALUES = ("K", "kappa", *(name for shape in _SHAPES for name in (shape, f"{shape}_slope")))


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveRun:
    """A run to fit, or to predict."""

    curve: LossCurve
    num_params: float | None = None
    """None: the runs of a fit are all of one size."""
    is_anchor: bool = False
    """Whether it sets only the level of its size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveLaw:
    """A fitted law."""

    form: CurveForm
    values: Floats
    """Logs of the form's constants; over sizes, of `_SIZE_VALUES` (slopes as they are) and the kernel."""
    irreducible: float | None = None
    """E, nats per token; None: it is a law of one size."""
    levels: Mapping[float | None, float] = field(default_factory=dict)
    """Nats per token that anchors add to L0, by size."""

    def theta(self, num_params: float | None) -> Floats:
        """Return the logs of the form's constants at a size."""
        expand = _unchanged if self.irreducible is None else _at_size(num_params or 0.0, self.irreducible)
        theta = expand(self.values)[0].copy()
        theta[0] = np.log(max(np.exp(theta[0]) + self.levels.get(num_params, 0.0), np.exp(theta[0]) / 2))
        return theta

    def predict(self, run: CurveRun) -> Floats:
        """Return the losses at a run's points, nats per token, [point]."""
        return predict(self.form, self.theta(run.num_params), run.curve)

    def log_errors(self, run: CurveRun) -> Floats:
        """Return log(predicted / measured) at a run's points, [point]."""
        return np.asarray(np.log(np.maximum(self.predict(run), 1e-3) / run.curve.loss))

    def constants(self) -> dict[str, float]:
        """Return the constants by name."""
        if self.irreducible is None:
            return named_constants(self.form, self.values)
        named = zip((*_SIZE_VALUES, *self.form.kernel), self.values.tolist(), strict=True)
        plain = {name: value if name.endswith("_slope") else math.exp(value) for name, value in named}
        return {"E": self.irreducible, **plain}


def _unchanged(x: Floats) -> tuple[Floats, Floats]:
    return x, np.eye(len(x))


def fit_law(form: CurveForm, runs: Sequence[CurveRun], *, start: CurveLaw | None = None) -> CurveLaw:
    """Return the law of the runs: of one size, or one for all their sizes; anchors then set the levels of theirs.

    Args:
        form: The law's form.
        runs: At least one that is not an anchor.
        start: A law near the one searched for.
    """
    whole = [run for run in runs if not run.is_anchor]
    if len({run.num_params for run in whole}) == 1:
        law = CurveLaw(form=form, values=fit(form, [run.curve for run in whole]))
    else:
        law = _fit_sizes(form, whole, start=start)
    return CurveLaw(form=form, values=law.values, irreducible=law.irreducible, levels=_levels(law, runs))


def _fit_sizes(form: CurveForm, runs: Sequence[CurveRun], *, start: CurveLaw | None) -> CurveLaw:
    """Fit one law to runs of several sizes, from `start` or from the laws of each size alone."""
    sizes = sorted({run.num_params or 0.0 for run in runs})
    if start is not None and start.irreducible is not None:
        values, irreducible = start.values, start.irreducible
    else:
        each = np.array([fit(form, [run.curve for run in runs if run.num_params == size]) for size in sizes])
        irreducible = min(IRREDUCIBLE, IRREDUCIBLE_SHARE * float(np.exp(each[:, 0].min())))
        values = _start_values(each, sizes=sizes, irreducible=irreducible)
    parameters = Parameters(
        names=(*_SIZE_VALUES, *form.kernel),
        start=values,
        expand=[_at_size(run.num_params or 0.0, irreducible) for run in runs],
        prior=kernel_prior(form) | {f"{name}_slope": (0.0, SLOPE_STRENGTH) for name in ("A", "alpha")},
    )
    return CurveLaw(form=form, values=fit(form, [run.curve for run in runs], parameters), irreducible=irreducible)


def _start_values(each: Floats, *, sizes: Sequence[float], irreducible: float) -> Floats:
    """Return start values from the log constants of each size alone, [size, constant]."""
    each = each.copy()
    each[:, 0] = np.log(np.exp(each[:, 0]) - irreducible)
    slope, level = np.polyfit(np.log(np.array(sizes) / REFERENCE_PARAMS), each, 1)
    kappa = np.log(max(-slope[0], _LEAST_SLOPE))
    shapes = np.c_[level, slope][1 : 1 + len(_SHAPES)].ravel()
    return np.concatenate([[level[0], kappa], shapes, each.mean(0)[1 + len(_SHAPES) :]])


def _at_size(num_params: float, irreducible: float) -> Expansion:
    """Return the function from a size law's values to log constants at a size, and its derivatives."""
    far = float(np.log(num_params / REFERENCE_PARAMS))
    first_kernel = len(_SIZE_VALUES)

    def expand(x: Floats) -> tuple[Floats, Floats]:
        kappa = np.exp(x[1])
        excess = np.exp(x[0] - kappa * far)
        num_kernel = len(x) - first_kernel
        theta = np.zeros(1 + len(_SHAPES) + num_kernel)
        chain = np.zeros((len(theta), len(x)))
        theta[0] = np.log(irreducible + excess)
        chain[0, :2] = excess / (irreducible + excess) * np.array([1, -kappa * far])
        for i in range(1, 1 + len(_SHAPES)):
            theta[i] = x[2 * i] + x[2 * i + 1] * far
            chain[i, 2 * i : 2 * i + 2] = 1, far
        theta[1 + len(_SHAPES) :] = x[first_kernel:]
        chain[1 + len(_SHAPES) :, first_kernel:] = np.eye(num_kernel)
        return theta, chain

    return expand


def _levels(law: CurveLaw, runs: Sequence[CurveRun]) -> dict[float | None, float]:
    """Return what anchors add to the level of their size: the median of measured less predicted."""
    gaps: dict[float | None, list[Floats]] = {}
    for run in runs:
        if run.is_anchor:
            gaps.setdefault(run.num_params, []).append(run.curve.loss - law.predict(run))
    return {size: float(np.median(np.concatenate(of_size))) for size, of_size in gaps.items()}
