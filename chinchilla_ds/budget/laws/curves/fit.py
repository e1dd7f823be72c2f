"""The fit of a law of the curve: Huber's loss on log loss, with a weak prior on what the data leave loose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from chinchilla_ds.budget.laws.curves.curve import LossCurve, thinned
from chinchilla_ds.budget.laws.curves.equations import BULK, CurveForm, predict, predict_with_gradient
from chinchilla_ds.budget.laws.fitting.runs import Floats

PRIOR_STRENGTH = 0.01
"""Residual, in log loss, of a constant that is a factor e from the centre of its prior."""
HUBER_DELTA = 3e-3
"""Where Huber's loss turns linear, in log loss. The papers use 1e-3; this has the same mean error on schedules that
were left out, and a smaller worst one."""
PAPER_DELTA = 1e-3
"""Delta of the objective that is reported, Huber's of Luo et al. 2025 (arXiv:2503.12811) and Tissue et al. 2024."""
_FIRST_DELTA = 0.1
"""Nearly least squares first: from afar, the straight tails of Huber's loss have false minima."""
_SPAN = 4.0
"""Bound on the log constants about their start values; keeps every exponential finite."""
_SMALLEST_LOSS = 1e-3

Expansion = Callable[[Floats], tuple[Floats, Floats]]
"""From the fitted values to a curve's log constants, and the derivatives of these in the former."""


@dataclass(frozen=True)
class Parameters:
    """What is fitted: names, start values, and which law's constants they make on each curve."""

    names: tuple[str, ...]
    start: Floats
    """Logs, except of the slopes of a law over sizes."""
    expand: Sequence[Expansion]
    """One per curve."""
    prior: Mapping[str, tuple[float, float]]
    """Centres of the names that have one, and the residual, in log loss, of being 1 off."""


def fit(form: CurveForm, curves: Sequence[LossCurve], parameters: Parameters | None = None) -> Floats:
    """Return the fitted values, logs of the law's constants unless `parameters` are others.

    Args:
        form: The law.
        curves: Runs to fit, any number of points; long ones are averaged over neighbours.
        parameters: What to fit; None: the constants of one law for all curves.
    """
    points = [thinned(curve) for curve in curves]
    parameters = parameters or own_constants(form, points)
    objective = _Objective(form, points, parameters)
    x = parameters.start
    for delta in (_FIRST_DELTA, HUBER_DELTA):
        x = least_squares(
            objective.residuals,
            x,
            objective.jacobian,
            bounds=(parameters.start - _SPAN, parameters.start + _SPAN),
            loss=objective.rho,
            f_scale=delta,
            x_scale="jac",
            max_nfev=400,
            xtol=1e-8,
            ftol=1e-10,
            gtol=1e-14,
        ).x
    return np.asarray(x)


def own_constants(form: CurveForm, curves: Sequence[LossCurve], /) -> Parameters:
    """Return the parameters of one law for all curves, started from the range of the losses."""
    low, high = min(curve.loss.min() for curve in curves), max(curve.loss.max() for curve in curves)
    spread = max(high - low, 1e-3 * high)
    level, alpha = low - 0.4 * min(spread, low), 0.5
    amplitude = (high - level) * min(curve.summed_rate[0] for curve in curves) ** alpha
    peak = max(np.exp(curve.drops.log_rate.max()) for curve in curves)
    gain = 0.1 * spread / peak / form.scale  # a decay to zero gains a tenth of the range
    start = np.log([level, amplitude, alpha, gain, *form.start.values()])
    return Parameters(form.constants, start, [_unchanged] * len(curves), kernel_prior(form))


def kernel_prior(form: CurveForm, /) -> dict[str, tuple[float, float]]:
    """Return the prior of a law's kernel."""
    return {name: (float(np.log(centre)), PRIOR_STRENGTH) for name, centre in form.prior.items()}


def _unchanged(x: Floats) -> tuple[Floats, Floats]:
    return x, np.eye(len(x))


class _Objective:
    """Residuals and their derivatives: those of the points, then those of the prior."""

    def __init__(self, form: CurveForm, curves: Sequence[LossCurve], parameters: Parameters) -> None:
        self._form, self._curves, self._parameters = form, curves, parameters
        self._target = np.concatenate([np.log(curve.loss) for curve in curves])
        self._centre, self._pull = np.array([parameters.prior.get(name, (0.0, 0.0)) for name in parameters.names]).T
        self._at: bytes | None = None
        self._values: tuple[Floats, Floats]

    def residuals(self, x: Floats) -> Floats:
        return self._evaluate(x)[0]

    def jacobian(self, x: Floats) -> Floats:
        return self._evaluate(x)[1]

    def _evaluate(self, x: Floats) -> tuple[Floats, Floats]:
        if x.tobytes() != self._at:
            losses, gradients = [], []
            for expand, curve in zip(self._parameters.expand, self._curves, strict=True):
                theta, chain = expand(x)
                loss, gradient = predict_with_gradient(self._form, theta, curve)
                loss = loss.clip(_SMALLEST_LOSS)
                losses.append(loss)
                gradients.append(gradient @ chain / loss[:, None])
            residuals = np.r_[np.log(np.concatenate(losses)) - self._target, self._pull * (x - self._centre)]
            self._values = residuals, np.r_[np.concatenate(gradients), np.diag(self._pull)]
            self._at = x.tobytes()
        return self._values

    def rho(self, z: Floats) -> Floats:
        """Return Huber's loss of squared residuals, the prior's as they are, and two derivatives, [3, residual]."""
        wide = z > 1
        wide[len(self._target) :] = False
        root = np.sqrt(np.where(wide, z, 1))
        return np.stack([np.where(wide, 2 * root - 1, z), 1 / root, np.where(wide, -0.5 / root**3, 0)])


def log_errors(form: CurveForm, theta: Floats, curve: LossCurve) -> Floats:
    """Return log(predicted / measured) at each point, [point].

    Args:
        form: the law.
        theta: logs of its constants.
        curve: the points.
    """
    return np.log(predict(form, theta, curve).clip(_SMALLEST_LOSS) / curve.loss)


def huber_sum(errors: Floats, *, delta: float = PAPER_DELTA) -> float:
    """Return the summed Huber loss of log residuals."""
    wide = np.abs(errors)
    return float(np.where(wide <= delta, errors**2 / 2, delta * (wide - delta / 2)).sum())


def named_constants(form: CurveForm, theta: Floats, /) -> dict[str, float]:
    """Return the constants of a law by name."""
    return dict(zip((*BULK, *form.kernel), np.exp(theta).tolist(), strict=True))
