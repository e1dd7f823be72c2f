"""Intervals of a fitted law: the draws of its posterior, the scatter of single runs, and the error of the law itself.

Pure Python, so that a plan needs no other package. `SurfaceLaw` asks here for every interval of a law with draws: those
of `fit`, `plan`, `laws` and the pictures are the same numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DEFAULT_LEVEL = 0.8
"""The 10th to the 90th percentile."""
ERROR_PER_DECADE = 0.0125
"""Half-width at 80 %, in log loss, of the form's own error, per factor of ten in compute beyond the dearest run.

Most of what draws and scatter leave uncovered are misses of this kind. Without any one of the four collections of
docs/fitting.md the intervals hold 83 to 85 % of the others' runs. It is an average over them, not a bound for the next.
"""

Draw = tuple[float, float, float, float, float, float]
"""log A, log B, log E, alpha, beta and log k, in units of parameters, tokens and nats."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """What a fit knows of its own error."""

    draws: tuple[Draw, ...]
    """Draws of all six constants from the posterior."""
    scatter: float
    """Mean absolute log residual of the dearer half of the runs: small, cheap runs scatter more."""
    dearest_flops: float
    """6 N D of the dearest run, FLOPs."""

    def loss_interval(
        self, *, loss: float, num_params: float, num_tokens: float, level: float = DEFAULT_LEVEL
    ) -> tuple[float, float]:
        """Return the interval that holds the loss of one run with probability `level`.

        Three half-widths in log loss are added in quadrature, below and above the prediction: the percentiles of the
        draws, the scatter of one run, and ERROR_PER_DECADE beyond the dearest run. The last two are those of a Laplace
        distribution: at other levels both scale by log(1 / (1 - level)) over its value at 80 %.

        Args:
            loss: the law's prediction, nats per token.
            num_params: N, in the law's convention.
            num_tokens: D, training tokens.
            level: probability of the interval.
        """
        log_params, log_tokens = math.log(num_params), math.log(num_tokens)
        log_losses = sorted(_log_loss(draw, log_params, log_tokens) for draw in self.draws)
        tail = (1 - level) / 2
        scatter = self.scatter * -math.log1p(-level)
        decades = max(0.0, math.log10(6 * num_params * num_tokens / self.dearest_flops))
        form = ERROR_PER_DECADE * decades * math.log1p(-level) / math.log1p(-DEFAULT_LEVEL)
        below = max(0.0, math.log(loss) - percentile(log_losses, tail))
        above = max(0.0, percentile(log_losses, 1 - tail) - math.log(loss))
        return loss * math.exp(-math.hypot(below, scatter, form)), loss * math.exp(math.hypot(above, scatter, form))

    def optimal_intervals(
        self, *, compute_budget_flops: float, level: float = DEFAULT_LEVEL
    ) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Return the percentiles of N*, D* and D* / N* on 6 N D = C over the draws.

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4, at every draw; k does not move the optimum.
        """
        log_budget = math.log(compute_budget_flops / 6)
        log_params = sorted(_log_optimum(draw, log_budget) for draw in self.draws)
        tail = (1 - level) / 2
        low, high = percentile(log_params, tail), percentile(log_params, 1 - tail)
        return (
            (math.exp(low), math.exp(high)),
            (math.exp(log_budget - high), math.exp(log_budget - low)),
            (math.exp(log_budget - 2 * high), math.exp(log_budget - 2 * low)),
        )

    def interval(self, quantity: Callable[[Draw], float], /, *, level: float = DEFAULT_LEVEL) -> tuple[float, float]:
        """Return the percentiles of a function of the constants over the draws."""
        values = sorted(map(quantity, self.draws))
        return percentile(values, (1 - level) / 2), percentile(values, (1 + level) / 2)


def percentile(values: Sequence[float], share: float, /) -> float:
    """Return the value below which that share of sorted values lies, linear between two of them."""
    place = share * (len(values) - 1)
    first = min(int(place), len(values) - 2)
    return values[first] + (place - first) * (values[first + 1] - values[first])


def _log_loss(draw: Draw, log_params: float, log_tokens: float) -> float:
    log_a, log_b, log_e, alpha, beta, log_k = draw
    reducible = math.exp(log_k) * _log_sum(log_a - alpha * log_params, log_b - beta * log_tokens)
    return _log_sum(reducible, log_e)


def _log_sum(left: float, right: float) -> float:
    """Return log(e^left + e^right)."""
    return max(left, right) + math.log1p(math.exp(-abs(left - right)))


def _log_optimum(draw: Draw, log_budget: float) -> float:
    """Return log N* on N D = e^log_budget."""
    log_a, log_b, _, alpha, beta, _ = draw
    return (math.log(alpha / beta) + log_a - log_b + beta * log_budget) / (alpha + beta)
