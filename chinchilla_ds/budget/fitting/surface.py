"""Approach 3: the loss surface L(N, D) = E + (A / N^alpha + B / D^beta)^k fitted to a table of runs."""

import math
from dataclasses import dataclass
from enum import StrEnum

from chinchilla_ds.budget.scaling_laws import Optimum


class Objective(StrEnum):
    """What is summed over the runs, of r = log L_predicted - log L_observed."""

    HUBER = "huber"
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond: the paper's."""
    LAD = "lad"
    """|r|: least absolute deviations, the limit of huber / delta as delta goes to 0."""
    SQUARED = "squared"
    """r^2 / 2: least squares on the log loss."""


class Form(StrEnum):
    """Whether the outer exponent k is fixed, fitted, or chosen."""

    ADDITIVE = "additive"
    """k = 1: the paper's."""
    SKALING = "skaling"
    """k is fitted."""
    AUTO = "auto"
    """k is fitted only where that predicts held-out runs better; see `holdout`."""


@dataclass(frozen=True, kw_only=True)
class Surface:
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
    """k."""

    def loss(self, *, num_params: float, num_tokens: float) -> float:
        """Return the predicted loss in nats per token; single pass over the data."""
        params_term = self.params_coefficient * math.pow(num_params, -self.alpha)
        tokens_term = self.tokens_coefficient * math.pow(num_tokens, -self.beta)
        return self.irreducible_loss + math.pow(params_term + tokens_term, self.outer_exponent)

    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N and D of least loss on 6 N D = C; k does not move them.

        N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
        G = (alpha A / (beta B))^(1 / (alpha + beta)). The outer power is increasing, so that the sum inside decides.

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.
        """
        total = self.alpha + self.beta
        log_ratio = math.log(self.alpha * self.params_coefficient) - math.log(self.beta * self.tokens_coefficient)
        num_params = math.exp((log_ratio + self.beta * math.log(compute_budget_flops / 6)) / total)
        num_tokens = compute_budget_flops / 6 / num_params
        loss = self.loss(num_params=num_params, num_tokens=num_tokens)
        return Optimum(num_params=num_params, num_tokens=num_tokens, loss=loss)


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """How well both forms, fitted to the cheaper runs, predict the dearer ones."""

    num_held_out: int
    additive_error: float
    """Mean absolute log residual on the held-out runs with k = 1."""
    skaling_error: float
    """The same with k fitted."""


@dataclass(frozen=True, kw_only=True)
class SurfaceFit:
    """A fitted surface, and how far to trust it."""

    surface: Surface
    """The optimum. Where `identifiable` is False its constants are one of many that fit equally well: not knowledge."""
    form: Form
    """The form that was fitted, never `AUTO`."""
    objective: Objective
    delta: float
    """Huber's delta, in log loss; not used by the other objectives."""
    objective_value: float
    """The objective summed over the runs."""
    gradient_norm: float
    """Norm of its gradient in (log A, log B, log E, alpha, beta[, log k]), N, D and loss over their geometric means."""
    num_points: int
    identifiable: bool
    """Whether these runs can tell alpha and beta apart."""
    warnings: tuple[str, ...] = ()
    hold_out: HoldOut | None = None
    """Both forms' errors where the form was chosen by hold-out."""
