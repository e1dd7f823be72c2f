"""Published scaling laws L(N, D) = E + A / N^alpha + B / D^beta, each with the convention it was fitted under."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chinchilla_ds.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best N and D that a law gives for a budget, before any discrete shape."""

    num_params: float
    num_tokens: float
    loss: float
    """Nats per token of the law's own tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token, with C = 6 N D FLOPs."""

    name: str
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
    params_convention: str
    """What N counts."""
    min_flops: float
    """Smallest budget of the runs it was fitted on."""
    max_flops: float
    """Largest budget of the runs it was fitted on."""
    source: str

    def loss(self, *, num_params: float, num_tokens: float) -> float:
        """Return the predicted loss in nats per token; single pass over the data."""
        params_term = self.params_coefficient * math.pow(num_params, -self.alpha)
        tokens_term = self.tokens_coefficient * math.pow(num_tokens, -self.beta)
        return self.irreducible_loss + params_term + tokens_term

    def optimal(self, *, compute_budget_flops: float) -> Optimum:
        """Return N and D of least loss on 6 N D = C.

        N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
        G = (alpha A / (beta B))^(1 / (alpha + beta)).

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4.
        """
        num_params = self._scale * math.pow(compute_budget_flops / 6, self.params_exponent)
        num_tokens = compute_budget_flops / 6 / num_params
        loss = self.loss(num_params=num_params, num_tokens=num_tokens)
        return Optimum(num_params=num_params, num_tokens=num_tokens, loss=loss)

    def budget_for_params(self, *, num_params: float) -> float:
        """Return the budget in FLOPs whose optimum has `num_params` parameters."""
        return 6 * math.pow(num_params / self._scale, 1 / self.params_exponent)

    @property
    def params_exponent(self) -> float:
        """The a of N = G (C/6)^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def _scale(self) -> float:
        ratio = self.alpha * self.params_coefficient / (self.beta * self.tokens_coefficient)
        return math.pow(ratio, 1 / (self.alpha + self.beta))

    def extrapolation(self, *, compute_budget_flops: float) -> float:
        """Return how many times the budget lies outside the fitted range; 1 inside it."""
        return max(1.0, self.min_flops / compute_budget_flops, compute_budget_flops / self.max_flops)


LAWS: Mapping[str, Law] = {
    law.name: law
    for law in (
        Law(
            name="hoffmann2022",
            irreducible_loss=math.exp(0.5267228),
            params_coefficient=math.exp(6.0073404),
            tokens_coefficient=math.exp(6.0179186),
            alpha=0.33917084,
            beta=0.2849083,
            params_convention="all parameters, embeddings included once (the paper's are tied)",
            min_flops=6e18,
            max_flops=3e21,
            source="Hoffmann et al. 2022 (arXiv:2203.15556v1), approach 3, full precision from the TeX source",
        ),
        Law(
            name="besiroglu2024",
            irreducible_loss=1.8172,
            params_coefficient=482.01,
            tokens_coefficient=2085.43,
            alpha=0.3478,
            beta=0.3658,
            params_convention="all parameters, as in Hoffmann et al.",
            min_flops=6e18,
            max_flops=3e21,
            source="Besiroglu et al. 2024 (arXiv:2404.10102), refit of 240 points of Hoffmann et al. 2022",
        ),
    )
}

_REFUSED = {
    "hoffmann2022_rounded": "its constants are rounded to two digits, which moves N for 5.76e23 FLOPs from 40.4B to "
    "32.2B; use 'hoffmann2022'",
}


def get_law(name: str, /) -> Law:
    """Return the law of that name.

    Raises:
        ConfigError: no such law, or one that must not be planned with.
    """
    if name in _REFUSED:
        raise ConfigError(f"law {name!r} is not for planning: {_REFUSED[name]}")
    if name not in LAWS:
        raise ConfigError(f"law ({name!r}) must be one of {', '.join(LAWS)}{did_you_mean(name, LAWS)}")
    return LAWS[name]
