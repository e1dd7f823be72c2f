"""Inference demand: the cheapest model of a given quality over training and serving together.

Source: Sardana et al. 2023 (arXiv:2401.00448), section 2: minimise 6 N D_train + 2 N D_inference at fixed loss. Leaves
out that serving has a different utilisation and price per FLOP from training, and attention over long contexts.
"""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import SurfaceLaw
from chinchilla_ds.errors import PlanError

TRAIN_FLOPS_PER_PARAM = 6
"""FLOPs per parameter and trained token."""
INFERENCE_FLOPS_PER_PARAM = 2
"""FLOPs per parameter and token served, read or written: only the forward pass."""
_BISECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class InferenceOptimum:
    """The cheapest N and D of a given loss over training and serving."""

    num_params: float
    num_tokens: float
    """Tokens trained on."""
    inference_tokens: float
    """Tokens served over the model's life, prompts and answers."""
    loss: float
    """Nats per token of the law's own tokenizer."""
    train_flops: float
    inference_flops: float
    saved_flops: float
    """Total FLOPs saved, compared with the compute-optimal model of the same loss."""


def optimal_with_inference(*, law: SurfaceLaw, loss: float, inference_tokens: float) -> InferenceOptimum:
    """Return the N and D with the fewest training and inference FLOPs among those that reach `loss`.

    With q the share of D's term in the reducible loss, N and D are functions of q, and the cost is minimal where
    alpha (1 - q) / (beta q) = 1 + D_inference / (3 D). The left side falls in q and the right side grows, from equality
    at the compute-optimal q without inference; the smallest D, which is there, bounds q from below.

    Args:
        law: the loss surface.
        loss: the loss to reach, in nats per token.
        inference_tokens: tokens served over the model's life; 0 gives the compute-optimal model.

    Raises:
        PlanError: no model reaches that loss.

    Source: Sardana et al. 2023 (arXiv:2401.00448), section 2.
    """
    if loss <= law.irreducible_loss:
        raise PlanError(
            f"no model reaches a loss of {loss:.4g} nats per token: {law.name} has an irreducible loss of "
            f"{law.irreducible_loss:.4g}; ask for more than that"
        )
    reducible = math.pow(loss - law.irreducible_loss, 1 / law.outer_exponent)
    plain = law.alpha / (law.alpha + law.beta)
    plain_params, plain_tokens = _on_contour(law, reducible, plain)
    most = 1 + inference_tokens / (3 * plain_tokens)
    low, high = math.log(law.alpha / (law.alpha + law.beta * most)), math.log(plain)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        share = math.exp(middle)
        _, num_tokens = _on_contour(law, reducible, share)
        pays = law.alpha * (1 - share) / (law.beta * share) < 1 + inference_tokens / (3 * num_tokens)
        low, high = (low, middle) if pays else (middle, high)
    num_params, num_tokens = _on_contour(law, reducible, math.exp((low + high) / 2))
    total = _cost(num_params, num_tokens, inference_tokens)
    return InferenceOptimum(
        num_params=num_params,
        num_tokens=num_tokens,
        inference_tokens=inference_tokens,
        loss=loss,
        train_flops=TRAIN_FLOPS_PER_PARAM * num_params * num_tokens,
        inference_flops=INFERENCE_FLOPS_PER_PARAM * num_params * inference_tokens,
        saved_flops=_cost(plain_params, plain_tokens, inference_tokens) - total,
    )


def _on_contour(law: SurfaceLaw, reducible: float, tokens_share: float) -> tuple[float, float]:
    """Return the N and D where D's term is that share of the reducible loss, and N's term the rest."""
    num_params = math.pow(law.params_coefficient / ((1 - tokens_share) * reducible), 1 / law.alpha)
    return num_params, math.pow(law.tokens_coefficient / (tokens_share * reducible), 1 / law.beta)


def _cost(num_params: float, num_tokens: float, inference_tokens: float) -> float:
    return num_params * (TRAIN_FLOPS_PER_PARAM * num_tokens + INFERENCE_FLOPS_PER_PARAM * inference_tokens)
