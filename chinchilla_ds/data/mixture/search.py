"""The mixture with the smallest loss as predicted from finished runs, and its uncertainty.

Shapes: r = runs, k = sources, m = mixtures evaluated, p = terms of the regression, d = bootstrap draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.data.mixture.regression import FORMS, Regression
from chinchilla_ds.data.mixture.simplex import Bounds, descend, project, spread_points
from chinchilla_ds.data.mixture.table import MixtureRuns
from chinchilla_ds.errors import ConfigError, DataError

DEFAULT_LEVEL = 0.8
NUM_FOLDS = 10
NUM_STARTS = 2000
WIDEST = 4.0
"""Largest factor by which the spread of the bootstrap is widened."""
_POLISHED = 10
"""Number of best starts that are refined."""


@dataclass(frozen=True, kw_only=True)
class FormScore:
    """Accuracy of a regression on runs that it was not fitted to."""

    name: str
    error: float
    """Root mean square error, in the unit of the losses."""
    rank_correlation: float
    """Spearman's rank correlation of predicted and actual loss."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its interval of probability `level`, according to the fit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureFit:
    """The result of a search."""

    runs: MixtureRuns
    scores: tuple[FormScore, ...]
    chosen: str
    """The form with the smallest error."""
    natural: Floats
    """Shares of the tokens, [k]."""
    bounds: Bounds
    best: Floats
    """Weights of the best mixture, [k]."""
    best_low: Floats
    """Lower ends of the intervals of `best`, one source at a time, [k]."""
    best_high: Floats
    loss: Estimate
    """Predicted at `best`; the interval accounts for the selection of `best` by its low prediction."""
    natural_loss: Estimate
    gain: Estimate
    """Loss of the natural mixture less that of `best`."""
    level: float
    num_draws: int

    @property
    def is_better(self) -> bool:
        """Whether the gain over the natural mixture exceeds its uncertainty."""
        return self.gain.low > 0


def epoch_bounds(*, available_tokens: Floats, num_tokens: float, max_epochs: float) -> Bounds:
    """Return the bounds weight_i * num_tokens <= max_epochs * available_i.

    Args:
        available_tokens: tokens of each source, [k].
        num_tokens: tokens of the large run.
        max_epochs: largest number of passes over each source.

    Raises:
        ConfigError: `max_epochs` passes over all sources have fewer than `num_tokens`; names the valid values.
    """
    total = float(available_tokens.sum())
    if num_tokens > max_epochs * total:
        raise ConfigError(
            f"`num_tokens={num_tokens:.6g}` at `max_epochs={max_epochs:g}` is more than the {total:.6g} tokens of all "
            f"sources allow; no mixture works. At most `num_tokens={int(max_epochs * total)}`, or at least "
            f"`max_epochs={np.ceil(100 * num_tokens / total) / 100:g}`"
        )
    return Bounds(
        lower=np.zeros(len(available_tokens)), upper=np.minimum(max_epochs * available_tokens / num_tokens, 1.0)
    )


def search_mixture(
    runs: MixtureRuns,
    /,
    *,
    natural: Floats,
    caps: Bounds | None,
    num_draws: int,
    seed: int,
    level: float = DEFAULT_LEVEL,
) -> MixtureFit:
    """Return the mixture with the smallest predicted loss within the caps and the weights that were tried.

    Args:
        runs: the finished runs.
        natural: natural token shares of the sources, [k].
        caps: limits of each source's weight; None: no limits.
        num_draws: bootstrap draws.
        seed: seeds the draws and the starting points.
        level: probability of the intervals.

    Raises:
        DataError: no mixture within the caps is within the weights that were tried.
    """
    bounds = _tried_bounds(runs.weights, caps=caps)
    center, scale = float(runs.losses.mean()), float(runs.losses.std()) or 1.0
    losses = (runs.losses - center) / scale
    scores = {name: _cross_validate(fit, weights=runs.weights, losses=losses) for name, fit in FORMS.items()}
    chosen = min(scores, key=lambda name: scores[name][0])
    regression = FORMS[chosen](runs.weights, losses)
    generator = np.random.default_rng(seed)
    num = len(losses)
    widen = _widening(regression, losses, error=scores[chosen][0])
    counts = generator.multinomial(num, np.full(num, 1 / num), size=num_draws).astype(float)
    draws = np.stack([regression.solve(losses, row) for row in counts])
    fitted = regression.solve(losses, np.ones(num))
    starts = np.concatenate(
        [spread_points(bounds=bounds, num_points=NUM_STARTS, seed=seed), project(runs.weights, bounds=bounds)]
    )
    best = best_mixtures(regression, fitted[None], starts=starts, bounds=bounds)[0]
    drawn = best_mixtures(regression, draws, starts=starts, bounds=bounds)

    def estimate(coefficients: Floats, mixtures: Floats) -> Floats:
        out: Floats = (regression.terms(mixtures) * coefficients).sum(axis=1)
        return out

    fitted_rows, natural_rows = np.repeat(fitted[None], num_draws, axis=0), np.repeat(natural[None], num_draws, axis=0)
    truth, predicted = estimate(fitted_rows, drawn), estimate(draws, drawn)
    natural_truth, natural_predicted = estimate(fitted_rows, natural_rows), estimate(draws, natural_rows)
    value, natural_value = estimate(fitted[None], best[None])[0], estimate(fitted[None], natural[None])[0]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)

    def interval(value: float, errors: Floats, *, shift: float) -> Estimate:
        ends = widen * np.quantile(errors, [tail, 1 - tail])
        first, last = (shift + scale * (value + ends)).tolist()
        return Estimate(value=shift + scale * float(value), low=first, high=last)

    return MixtureFit(
        runs=runs,
        scores=tuple(
            FormScore(name=name, error=scale * error, rank_correlation=rank) for name, (error, rank) in scores.items()
        ),
        chosen=chosen,
        natural=natural,
        bounds=bounds,
        best=best,
        best_low=np.minimum(low, best),
        best_high=np.maximum(high, best),
        loss=interval(value, truth - predicted, shift=center),
        natural_loss=interval(natural_value, natural_truth - natural_predicted, shift=center),
        gain=interval(natural_value - value, (natural_truth - truth) - (natural_predicted - predicted), shift=0.0),
        level=level,
        num_draws=num_draws,
    )


def best_mixtures(regression: Regression, coefficients: Floats, /, *, starts: Floats, bounds: Bounds) -> Floats:
    """Return the mixture with the smallest loss for each row of coefficients, [d, p] -> [d, k].

    Every start is evaluated, and the best few of each row are refined by projected gradient descent.

    Args:
        regression: the fitted form.
        coefficients: one row per problem, [d, p].
        starts: mixtures to start from, [m, k].
        bounds: limits of each source's weight.
    """
    predicted = regression.terms(starts) @ coefficients.T
    num_refined = _POLISHED if len(coefficients) == 1 else 1
    order = np.argsort(predicted, axis=0)[:num_refined].T  # [d, refined]
    rows = np.repeat(coefficients, num_refined, axis=0)

    def value(mixtures: Floats) -> Floats:
        out: Floats = (regression.terms(mixtures) * rows).sum(axis=1)
        return out

    def gradient(mixtures: Floats) -> Floats:
        out: Floats = np.einsum("mpk,mp->mk", regression.slopes(mixtures), rows)
        return out

    ends = descend(starts[order.ravel()], value=value, gradient=gradient, bounds=bounds)
    least = value(ends).reshape(order.shape).argmin(axis=1)
    out: Floats = ends.reshape(*order.shape, -1)[np.arange(len(coefficients)), least]
    return out


def _widening(regression: Regression, losses: Floats, /, *, error: float) -> float:
    """Return the ratio of the errors on runs left out to those on the runs that were fitted.

    A fit is closer to its own runs than the truth is, and so are fits to runs resampled from them: their spread
    alone is too narrow, especially for a form with nearly as many constants as there are runs.
    """
    fitted = regression.terms(regression.mixtures) @ regression.solve(losses, np.ones(len(losses)))
    own = float(np.sqrt(np.mean((fitted - losses) ** 2)))
    return float(np.clip(error / max(own, 1e-9), 1.0, WIDEST))


def _tried_bounds(weights: Floats, *, caps: Bounds | None) -> Bounds:
    """Return the caps, restricted to the weights that were tried: beyond them a regression is not reliable."""
    lower, upper = weights.min(axis=0), weights.max(axis=0)
    if caps is not None:
        upper = np.minimum(upper, caps.upper)
        if upper.sum() < 1 or np.any(lower > upper):
            raise DataError(
                "no mixture within `max_epochs` lies between the least and the greatest weight of each source that was "
                "tried; design and run mixtures with the same `num_tokens` and `max_epochs`"
            )
    return Bounds(lower=lower, upper=upper)


def _cross_validate(
    fit: Callable[[Floats, Floats], Regression], /, *, weights: Floats, losses: Floats
) -> tuple[float, float]:
    """Return the error of the predictions for runs left out, and their rank correlation with the losses.

    Runs on the same mixture are left out together; the whole fit, settings included, is repeated for each fold.
    """
    _, mixture = np.unique(weights, axis=0, return_inverse=True)
    fold = np.random.default_rng(0).permutation(mixture.max() + 1)[mixture.ravel()] % NUM_FOLDS
    predicted = np.empty_like(losses)
    for index in np.unique(fold):
        fitted, left_out = fold != index, fold == index
        regression = fit(weights[fitted], losses[fitted])
        predicted[left_out] = regression.terms(weights[left_out]) @ regression.solve(
            losses[fitted], np.ones(fitted.sum())
        )
    return float(np.sqrt(np.mean((predicted - losses) ** 2))), rank_correlation(predicted, losses)


def rank_correlation(first: Floats, second: Floats, /) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; 0 if one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    out: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return out
