"""The cost of training a smaller model for longer, in compute at equal loss or in loss at equal compute."""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import SurfaceLaw

SIZE_FACTORS = (2.0, 1.0, 1 / 2, 1 / 4, 1 / 8)
"""Model sizes of the curve, in multiples of the optimal N."""


@dataclass(frozen=True, kw_only=True)
class OvertrainingRow:
    """One model size beside the compute-optimal one."""

    size_factor: float
    """N / N*."""
    num_params: float
    tokens_at_equal_loss: float | None
    """D that reaches the loss of the optimum; None if no number of tokens does."""
    compute_ratio: float | None
    """Compute at equal loss, divided by the budget; None as above."""
    tokens_at_equal_compute: float
    loss_at_equal_compute: float
    """Nats per token of the law's own tokenizer."""
    loss_increase: float
    """Loss above that of the optimum, nats per token."""
    loss_interval: tuple[float, float] | None
    """80 % interval of the loss at equal compute; None for a law without one."""


def overtraining_curve(
    *, law: SurfaceLaw, compute_budget_flops: float, size_factors: tuple[float, ...] = SIZE_FACTORS
) -> tuple[OvertrainingRow, ...]:
    """Return the cost of models around the optimal size.

    At the optimum, N's term has the share s = beta / (alpha + beta) of the reducible loss. With N = f N* it has
    s f^-alpha of it, so that equal loss takes D = D* ((1 - s) / (1 - s f^-alpha))^(1 / beta), and no D suffices where
    s f^-alpha reaches 1. At equal compute D = D* / f.

    Args:
        law: the loss surface.
        compute_budget_flops: budget in FLOPs whose optimum is the reference.
        size_factors: model sizes, in multiples of the optimal N.

    Source: closed form of Hoffmann et al. 2022 (arXiv:2203.15556), equations 2 and 4; Gadre et al. 2024
    (arXiv:2403.08540) find that such curves hold for over-trained models. Leaves out that inference gets cheaper.
    """
    best = law.optimal(compute_budget_flops=compute_budget_flops)
    best_loss = law.loss(num_params=best.num_params, num_tokens=best.num_tokens)
    rows = []
    for factor in size_factors:
        num_params, tokens = factor * best.num_params, best.num_tokens / factor
        more = _more_tokens(law, factor)
        loss = law.loss(num_params=num_params, num_tokens=tokens)
        rows.append(
            OvertrainingRow(
                size_factor=factor,
                num_params=num_params,
                tokens_at_equal_loss=None if more is None else more * best.num_tokens,
                compute_ratio=None if more is None else factor * more,
                tokens_at_equal_compute=tokens,
                loss_at_equal_compute=loss,
                loss_increase=loss - best_loss,
                loss_interval=law.loss_interval(num_params=num_params, num_tokens=tokens),
            )
        )
    return tuple(rows)


def _more_tokens(law: SurfaceLaw, factor: float) -> float | None:
    """Return D / D* at equal loss for N / N* = factor; None if the loss is out of reach."""
    share = law.params_exponent
    left = 1 - share * math.pow(factor, -law.alpha)
    return math.pow((1 - share) / left, 1 / law.beta) if left > 0 else None
