"""The objective of approach 3 and its exact derivatives, for many weightings of the same runs at once.

The model is fitted in the parameters theta = (log A, log B, log E, alpha, beta[, log k]), with N, D and loss divided by
their geometric means. That makes the fit the same in any unit, and keeps log A and alpha nearly uncorrelated.

Shapes: m problems (bootstrap draws, or starts), n runs, p = 5 or 6 parameters. theta is [m, p], weights are [m, n].
"""

from dataclasses import dataclass, replace

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable

LOG_A, LOG_B, LOG_E, ALPHA, BETA, LOG_K = range(6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """The runs as logarithms over their means."""

    log_params: Floats
    """log N - mean log N, [n]."""
    log_tokens: Floats
    """log D - mean log D, [n]."""
    log_loss: Floats
    """log L - mean log L, [n]."""
    mean_log_params: float
    mean_log_tokens: float
    mean_log_loss: float

    def with_runs(self, runs: RunTable, /) -> "Points":
        """Return other runs divided by the means of these, so that a theta fitted to these applies to them."""
        return replace(
            self,
            log_params=np.log(runs.num_params) - self.mean_log_params,
            log_tokens=np.log(runs.num_tokens) - self.mean_log_tokens,
            log_loss=np.log(runs.loss) - self.mean_log_loss,
        )

    def to_units(self, theta: Floats, /) -> Floats:
        """Return centred theta, [m, p], as theta of N, D and loss in their own units."""
        return theta + self._shift(theta)

    def from_units(self, theta: Floats, /) -> Floats:
        """Return theta of N, D and loss in their own units, [m, p], as centred theta."""
        return theta - self._shift(theta)

    def _shift(self, theta: Floats) -> Floats:
        exponent = np.exp(theta[:, LOG_K]) if theta.shape[1] > LOG_K else np.ones(len(theta))
        shift = np.zeros_like(theta)
        shift[:, LOG_A] = theta[:, ALPHA] * self.mean_log_params + self.mean_log_loss / exponent
        shift[:, LOG_B] = theta[:, BETA] * self.mean_log_tokens + self.mean_log_loss / exponent
        shift[:, LOG_E] = self.mean_log_loss
        return shift


def center(runs: RunTable, /) -> Points:
    """Return the runs in the form that the objective takes."""
    logs = [np.log(column) for column in (runs.num_params, runs.num_tokens, runs.loss)]
    means = [float(np.mean(column)) for column in logs]
    return Points(
        log_params=logs[0] - means[0],
        log_tokens=logs[1] - means[1],
        log_loss=logs[2] - means[2],
        mean_log_params=means[0],
        mean_log_tokens=means[1],
        mean_log_loss=means[2],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Linearised:
    """Residuals at theta, their gradients, and the terms of their second derivatives."""

    residual: Floats
    """log L_predicted - log L_observed, [m, n]."""
    jacobian: Floats
    """d residual / d theta, [m, p, n]."""
    share: Floats
    """The reducible loss over the loss, [m, n]."""
    params_share: Floats
    """A / N^alpha over (A / N^alpha + B / D^beta), [m, n]."""
    log_reducible: Floats | None
    """log of the reducible loss, [m, n]; None where k = 1."""
    outer_exponent: Floats
    """k, [m, 1]."""


def residuals(points: Points, theta: Floats, /) -> Floats:
    """Return log L_predicted - log L_observed, [m, n]."""
    inside = np.exp(theta[:, LOG_A, None] - theta[:, ALPHA, None] * points.log_params)
    inside += np.exp(theta[:, LOG_B, None] - theta[:, BETA, None] * points.log_tokens)
    if theta.shape[1] > LOG_K:
        inside **= np.exp(theta[:, LOG_K, None])
    inside += np.exp(theta[:, LOG_E, None])
    out: Floats = np.log(inside) - points.log_loss
    return out


def linearise(points: Points, theta: Floats, /) -> Linearised:
    """Return the residuals and their exact first derivatives.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 3: log L is the log-sum-exp of a - alpha log N,
        b - beta log D and e, and its derivatives are the shares of the three. The outer exponent k is not in the paper.
    """
    params_term = np.exp(theta[:, LOG_A, None] - theta[:, ALPHA, None] * points.log_params)
    tokens_term = np.exp(theta[:, LOG_B, None] - theta[:, BETA, None] * points.log_tokens)
    inside = params_term + tokens_term
    free = theta.shape[1] > LOG_K
    exponent = np.exp(theta[:, LOG_K, None]) if free else np.ones((len(theta), 1))
    log_reducible = exponent * np.log(inside) if free else None
    reducible = np.exp(log_reducible) if log_reducible is not None else inside
    loss = reducible + np.exp(theta[:, LOG_E, None])
    share = reducible / loss
    params_share = params_term / inside
    jacobian = np.empty((*theta.shape, len(points.log_loss)))
    weight = exponent * share if free else share
    np.multiply(weight, params_share, out=jacobian[:, LOG_A])
    np.subtract(weight, jacobian[:, LOG_A], out=jacobian[:, LOG_B])
    np.subtract(1, share, out=jacobian[:, LOG_E])
    np.multiply(jacobian[:, LOG_A], -points.log_params, out=jacobian[:, ALPHA])
    np.multiply(jacobian[:, LOG_B], -points.log_tokens, out=jacobian[:, BETA])
    if log_reducible is not None:
        np.multiply(share, log_reducible, out=jacobian[:, LOG_K])
    return Linearised(
        residual=np.log(loss) - points.log_loss,
        jacobian=jacobian,
        share=share,
        params_share=params_share,
        log_reducible=log_reducible,
        outer_exponent=exponent,
    )


def gram(jacobian: Floats, weights: Floats, /) -> Floats:
    """Return the sum over runs of weight times gradient times gradient transposed, [m, p, p]."""
    out: Floats = (jacobian * weights[:, None, :]) @ jacobian.transpose(0, 2, 1)
    return out


def hessian(points: Points, at: Linearised, /, *, first: Floats, second: Floats) -> Floats:
    """Return the sum over runs of first g g^T + second r'', [m, p, p], where g and r'' are the residual's derivatives.

    The residual is log-sum-exp of z (the log of the reducible loss) and log E, and z = k log-sum-exp of two functions
    that are linear in theta. With s the share of the reducible loss and e the unit vector of log E,
    r'' = s (z' z'^T + z'') + (1 - s) e e^T - g g^T.

    Args:
        points: the runs, n of them.
        at: residuals and gradients.
        first: weights of the gradients' outer products, [m, n].
        second: weights of the second derivatives, [m, n].
    """
    out = gram(at.jacobian, first - second)
    reducible = second * at.share * at.outer_exponent
    by_params = reducible * at.params_share
    _add_term(out, by_params, points.log_params, LOG_A, ALPHA)
    _add_term(out, reducible - by_params, points.log_tokens, LOG_B, BETA)
    out[:, LOG_E, LOG_E] += np.sum(second * (1 - at.share), axis=1)
    if at.log_reducible is not None:
        _add_outer_exponent(out, at, second)
    return out


def _add_term(out: Floats, weights: Floats, logs: Floats, coefficient: int, exponent: int) -> None:
    """Add weight times the outer product of (1, -log x), the gradient of log(A / x^alpha)."""
    moments = weights @ np.stack([np.ones_like(logs), -logs, logs**2], axis=1)
    out[:, coefficient, coefficient] += moments[:, 0]
    out[:, coefficient, exponent] += moments[:, 1]
    out[:, exponent, coefficient] += moments[:, 1]
    out[:, exponent, exponent] += moments[:, 2]


def _add_outer_exponent(out: Floats, at: Linearised, weights: Floats) -> None:
    """Add the terms of a k other than 1: s (1 - 1/k) g_z g_z' inside, and the rows of log k."""
    assert at.log_reducible is not None
    inner = [LOG_A, LOG_B, ALPHA, BETA]
    gradient = at.jacobian[:, inner] / at.share[:, None, :]
    inside = gram(gradient, weights * at.share * (1 - 1 / at.outer_exponent))
    out[np.ix_(range(len(out)), inner, inner)] += inside
    mixed = np.einsum("mpn,mn->mp", gradient, weights * at.share * (1 + at.log_reducible))
    out[:, inner, LOG_K] += mixed
    out[:, LOG_K, inner] += mixed
    own = weights * at.share * at.log_reducible * (1 + at.log_reducible)
    out[:, LOG_K, LOG_K] += np.sum(own, axis=1)
