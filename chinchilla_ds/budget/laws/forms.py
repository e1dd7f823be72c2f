"""The forms of scaling laws: a loss surface over N and D, or only the line of optima. Pure Python."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL, Uncertainty
from chinchilla_ds.units import format_flops

MAX_EXTRAPOLATION = 300.0
"""How many times beyond its fitted range a law is still used without a warning: 3e21, the end of the Chinchilla
sweep, to 5.76e23, the budget of the model that was trained to prove it, is 192 times."""
LARGEST_LOSS = 50.0
"""Nats per token; a uniform guess among 10^21 pieces. A larger loss is in another unit, or meaningless."""
_WIDEST_SPREAD = math.log(1e6)
"""Half width of an interval, in the logarithm, above which it is uninformative and not reported."""
LARGEST_VARIANCE_OF_LOG_E = 0.25
"""Variance of log E above which a covariance gives no interval of the loss: a few draws with E near 0 make it explode,
and the delta method then says nothing."""

Covariance = tuple[tuple[float, ...], ...]
"""[5, 5], over (log A, log B, log E, alpha, beta)."""


class ParamsConvention(StrEnum):
    """What a law counts as N."""

    TOTAL = "total"
    """All parameters with one embedding table; the Chinchilla paper's models tie input and output."""
    NON_EMBEDDING = "non_embedding"
    """Without any embedding table (Kaplan et al., Step Law)."""
    WITH_HEAD = "with_head"
    """Without the input table, with the output head (Porian et al.)."""
    FLOPS_EQUIVALENT = "flops_equivalent"
    """FLOPs per token outside the embeddings, attention included, over 6, so that C = 6 N D holds (DeepSeek)."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best N and D that a law gives for a budget, before any discrete shape."""

    num_params: float
    """In the law's own convention."""
    num_tokens: float
    loss: float | None
    """Nats per token of the law's own tokenizer; None for a law without a loss."""


@dataclass(frozen=True, kw_only=True)
class OptimumInterval:
    """Interval of a budget's optimum with probability `level`, by the uncertainty of the law's own fit."""

    level: float
    num_params: tuple[float, float]
    num_tokens: tuple[float, float]
    tokens_per_param: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """Gives the optimum of a compute budget, with C = 6 N D FLOPs."""

    name: str
    params_convention: ParamsConvention
    """What N counts."""
    min_flops: float
    """Smallest budget of the runs it was fitted on."""
    max_flops: float
    """Largest budget of the runs it was fitted on."""
    source: str
    notes: str = ""
    """What it leaves out, and its peculiarities."""

    @abstractmethod
    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N and D with the smallest loss on 6 N D = C."""

    @abstractmethod
    def budget_for_params(self, *, num_params: float) -> float:
        """Return the budget in FLOPs whose optimum has `num_params` parameters."""

    @abstractmethod
    def budget_for_tokens(self, *, num_tokens: float) -> float:
        """Return the budget in FLOPs whose optimum trains on `num_tokens` tokens."""

    def extrapolation(self, *, compute_budget_flops: float) -> float:
        """Return how many times the budget lies outside the fitted range; 1 inside it."""
        return max(1.0, self.min_flops / compute_budget_flops, compute_budget_flops / self.max_flops)

    def extrapolation_warning(self, *, compute_budget_flops: float) -> str | None:
        """Return one sentence about how far the budget lies outside the fitted range; None inside it."""
        times = self.extrapolation(compute_budget_flops=compute_budget_flops)
        if times <= 1:
            return None
        side = "below" if compute_budget_flops < self.min_flops else "above"
        where = (
            f"{format_flops(compute_budget_flops)} lie {times:.3g} times {side} the {self.min_flops:.3g} to "
            f"{self.max_flops:.3g} FLOPs that {self.name} was fitted on"
        )
        if times <= MAX_EXTRAPOLATION:
            return f"Note: {where}."
        return (
            f"Warning: {where}, beyond {MAX_EXTRAPOLATION:.0f} times: its split into N and D is a rule of thumb, and "
            "its loss is not a prediction."
        )


@dataclass(frozen=True, kw_only=True)
class SurfaceLaw(Law):
    """L(N, D) = E + (A / N^alpha + B / D^beta)^k in nats per token."""

    irreducible_loss: float
    """E, nats per token."""
    params_coefficient: float
    """A."""
    tokens_coefficient: float
    """B."""
    alpha: float
    """Exponent of N."""
    beta: float
    """Exponent of D."""
    outer_exponent: float = 1.0
    """k; 1 in Hoffmann et al. It does not move the optimum."""
    covariance: Covariance | None = None
    """The fit's covariance; None where its authors publish nothing usable. k is treated as known."""
    uncertainty: Uncertainty | None = None
    """The draws of a fit of ours; intervals then come from them alone."""
    remark: str = ""
    """What a plan must say of it: how well it predicted held-out runs, or why it has no interval; empty for nothing."""

    @property
    def params_exponent(self) -> float:
        """The a of N = G (C/6)^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def _log_scale(self) -> float:
        """Logarithm of the G of N = G (C/6)^a."""
        marginals = math.log(self.alpha * self.params_coefficient) - math.log(self.beta * self.tokens_coefficient)
        return marginals / (self.alpha + self.beta)

    def loss(self, *, num_params: float, num_tokens: float) -> float:
        """Return the predicted loss in nats per token; single pass over the data."""
        reducible = sum(self._terms(num_params=num_params, num_tokens=num_tokens))
        return self.irreducible_loss + math.pow(reducible, self.outer_exponent)

    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N and D with the smallest loss on 6 N D = C.

        N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
        G = (alpha A / (beta B))^(1 / (alpha + beta)).

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.
        """
        num_params = math.exp(self._log_scale + self.params_exponent * math.log(compute_budget_flops / 6))
        num_tokens = compute_budget_flops / 6 / num_params
        loss = self.loss(num_params=num_params, num_tokens=num_tokens)
        return Optimum(num_params=num_params, num_tokens=num_tokens, loss=loss)

    def budget_for_params(self, *, num_params: float) -> float:
        """Return the budget in FLOPs whose optimum has `num_params` parameters."""
        return 6 * math.exp((math.log(num_params) - self._log_scale) / self.params_exponent)

    def budget_for_tokens(self, *, num_tokens: float) -> float:
        """Return the budget in FLOPs whose optimum trains on `num_tokens` tokens."""
        return 6 * math.exp((math.log(num_tokens) + self._log_scale) / (1 - self.params_exponent))

    def tokens_for_loss(self, *, num_params: float, loss: float) -> float | None:
        """Return the tokens with which `num_params` parameters reach `loss`; None if no number of tokens does."""
        params_term, _ = self._terms(num_params=num_params, num_tokens=1.0)
        left = math.pow(loss - self.irreducible_loss, 1 / self.outer_exponent) - params_term
        return math.pow(self.tokens_coefficient / left, 1 / self.beta) if left > 0 else None

    def loss_interval(
        self, *, num_params: float, num_tokens: float, level: float = DEFAULT_LEVEL
    ) -> tuple[float, float] | None:
        """Return the interval of one run's loss with probability `level`.

        A law with draws has that of `Uncertainty.loss_interval`. Otherwise it is the delta method on the covariance,
        normal in the logarithm, which leaves out the scatter of single runs around the surface and the error of the
        form. Both leave out the effect of other data and tokenizers. None if there is neither, or a covariance so large
        that the interval is uninformative.

        Args:
            num_params: N, in the law's convention.
            num_tokens: D, training tokens.
            level: probability of the interval.
        """
        loss = self.loss(num_params=num_params, num_tokens=num_tokens)
        if self.uncertainty is not None:
            return self.uncertainty.loss_interval(loss=loss, num_params=num_params, num_tokens=num_tokens, level=level)
        if self.covariance is None or self.covariance[2][2] > LARGEST_VARIANCE_OF_LOG_E:
            return None
        params_term, tokens_term = self._terms(num_params=num_params, num_tokens=num_tokens)
        outer = self.outer_exponent * math.pow(params_term + tokens_term, self.outer_exponent - 1)
        gradient = (
            outer * params_term / loss,
            outer * tokens_term / loss,
            self.irreducible_loss / loss,
            -outer * params_term * math.log(num_params) / loss,
            -outer * tokens_term * math.log(num_tokens) / loss,
        )
        spread = _spread(gradient, self.covariance, level=level)
        return _log_normal(loss, spread) if spread <= _WIDEST_SPREAD else None

    def optimal_interval(self, *, compute_budget_flops: float, level: float = DEFAULT_LEVEL) -> OptimumInterval | None:
        """Return intervals of N*, D* and D*/N* with probability `level`.

        Percentiles of the draws, or where there are none the delta method on the covariance, normal in the logarithms.
        The three share one uncertainty: on 6 N D = C, log D* = const - log N* and log(D*/N*) = const - 2 log N*. None
        if there is neither, or a covariance so large that the interval is uninformative.

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4, for the optimum whose logarithm is propagated.
        """
        if self.uncertainty is not None:
            params, tokens, ratio = self.uncertainty.optimal_intervals(
                compute_budget_flops=compute_budget_flops, level=level
            )
            return OptimumInterval(level=level, num_params=params, num_tokens=tokens, tokens_per_param=ratio)
        if self.covariance is None:
            return None
        total, log_budget = self.alpha + self.beta, math.log(compute_budget_flops / 6)
        gradient = (
            1 / total,
            -1 / total,
            0.0,
            (1 / self.alpha - self._log_scale - self.params_exponent * log_budget) / total,
            (-1 / self.beta - self._log_scale + (1 - self.params_exponent) * log_budget) / total,
        )
        spread = _spread(gradient, self.covariance, level=level)
        if not spread <= _WIDEST_SPREAD:
            return None
        best = self.optimal(compute_budget_flops=compute_budget_flops)
        return OptimumInterval(
            level=level,
            num_params=_log_normal(best.num_params, spread),
            num_tokens=_log_normal(best.num_tokens, spread),
            tokens_per_param=_log_normal(best.num_tokens / best.num_params, 2 * spread),
        )

    def _terms(self, *, num_params: float, num_tokens: float) -> tuple[float, float]:
        params_term = self.params_coefficient * math.pow(num_params, -self.alpha)
        return params_term, self.tokens_coefficient * math.pow(num_tokens, -self.beta)


@dataclass(frozen=True, kw_only=True)
class FrontierLaw(Law):
    """N* = G C^a, C in FLOPs, and D* = C / (6 N*); the loss is not predicted."""

    params_scale: float
    """G."""
    params_exponent: float
    """a."""

    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N* and D* on 6 N D = C."""
        num_params = self.params_scale * math.pow(compute_budget_flops, self.params_exponent)
        return Optimum(num_params=num_params, num_tokens=compute_budget_flops / 6 / num_params, loss=None)

    def budget_for_params(self, *, num_params: float) -> float:
        """Return the budget in FLOPs whose optimum has `num_params` parameters."""
        return math.pow(num_params / self.params_scale, 1 / self.params_exponent)

    def budget_for_tokens(self, *, num_tokens: float) -> float:
        """Return the budget in FLOPs whose optimum trains on `num_tokens` tokens."""
        return math.pow(6 * self.params_scale * num_tokens, 1 / (1 - self.params_exponent))


def _spread(gradient: tuple[float, ...], covariance: Covariance, *, level: float) -> float:
    """Return half the width of the central interval of a linear function of the constants."""
    rows = zip(gradient, covariance, strict=True)
    variance = sum(left * entry * right for left, row in rows for entry, right in zip(row, gradient, strict=True))
    return NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(max(0.0, variance))


def _log_normal(centre: float, spread: float) -> tuple[float, float]:
    return centre * math.exp(-spread), centre * math.exp(spread)
