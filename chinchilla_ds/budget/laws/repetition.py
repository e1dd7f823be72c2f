"""Repeated text: the value of further epochs, and the best N, D and epochs when the distinct tokens run out.

D' = U + U R_D* (1 - exp(-R_D / R_D*)) with R_D = D/U - 1 repetitions of U distinct tokens replaces D in the law, and
in the same way N' replaces N, with U_N, the N for which U is the best D, in place of U.

Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3.1 and appendix A, on C4; constants of
github.com/huggingface/datablations. Leaves out that loss rises again after very many epochs, and the effects of
filtering, weight decay and dropout.
"""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.laws.registry import MUENNIGHOFF

TOKENS_HALF_LIFE = 15.387756
"""R_D*: repetitions after which a further epoch is worth 1/e of a fresh one."""
PARAMS_HALF_LIFE = 5.309743
"""R_N*: the same for parameters beyond U_N."""
_BISECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class RepetitionOptimum:
    """The best N and D for a budget with a limited number of distinct tokens."""

    num_params: float
    num_tokens: float
    """All tokens trained on, repetitions included."""
    epochs: float
    """num_tokens / unique tokens; at most 1 if nothing is repeated."""
    loss: float
    """Nats per token of the law's own tokenizer."""


def repeated_loss(*, num_params: float, num_tokens: float, unique_tokens: float) -> float:
    """Return the predicted loss in nats per token of training on `num_tokens`, of which `unique_tokens` are distinct.

    With fewer tokens than distinct ones, only those used count as U.

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens, repetitions included.
        unique_tokens: U, distinct training tokens.

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3.1.
    """
    matched = min(num_params, _matched_params(min(unique_tokens, num_tokens)))
    return MUENNIGHOFF.loss(
        num_params=_effective(num_params, matched, PARAMS_HALF_LIFE),
        num_tokens=effective_tokens(num_tokens=num_tokens, unique_tokens=unique_tokens),
    )


def effective_tokens(*, num_tokens: float, unique_tokens: float) -> float:
    """Return D', the distinct tokens that are worth as much as `num_tokens`, of which `unique_tokens` are distinct.

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3.1.
    """
    return _effective(num_tokens, min(unique_tokens, num_tokens), TOKENS_HALF_LIFE)


def optimal_with_repetition(*, compute_budget_flops: float, unique_tokens: float) -> RepetitionOptimum:
    """Return N, D and epochs with the smallest loss on 6 N D = C.

    If U covers the plain optimum's D, that is the answer. Otherwise the optimum lies at N between U_N and C / 6U:
    the loss falls with a step in log N at the first, and rises at the second. Between them the two marginal gains are
    compared in logarithms, so that neither underflows however many epochs there are.

    Source: Muennighoff et al. 2023 (arXiv:2305.16264), section 3.1.
    """
    plain = MUENNIGHOFF.optimal(compute_budget_flops=compute_budget_flops)
    num_params = plain.num_params
    if unique_tokens < plain.num_tokens:
        low, high = math.log(_matched_params(unique_tokens)), math.log(compute_budget_flops / 6 / unique_tokens)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            worth = _log_gain_of_params(math.exp(middle), compute_budget_flops / 6, unique_tokens)
            low, high = (middle, high) if worth > 0 else (low, middle)
        num_params = math.exp((low + high) / 2)
    num_tokens = compute_budget_flops / 6 / num_params
    return RepetitionOptimum(
        num_params=num_params,
        num_tokens=num_tokens,
        epochs=num_tokens / unique_tokens,
        loss=repeated_loss(num_params=num_params, num_tokens=num_tokens, unique_tokens=unique_tokens),
    )


def _effective(amount: float, base: float, half_life: float) -> float:
    """Return the effective amount when only the first `base` of it counts in full."""
    return base + base * half_life * -math.expm1(-(amount / base - 1) / half_life)


def _matched_params(num_tokens: float) -> float:
    """Return the N for which `num_tokens` are the plain law's best D."""
    return MUENNIGHOFF.optimal(compute_budget_flops=MUENNIGHOFF.budget_for_tokens(num_tokens=num_tokens)).num_params


def _log_gain_of_params(num_params: float, product: float, unique_tokens: float) -> float:
    """Return the log of the ratio of the gains of a step in log N and in log D, at D = product / N >= U."""
    law, num_tokens, matched = MUENNIGHOFF, product / num_params, _matched_params(unique_tokens)
    of_params = math.log(law.alpha * law.params_coefficient) + _log_marginal(
        num_params, matched, PARAMS_HALF_LIFE, exponent=law.alpha
    )
    of_tokens = math.log(law.beta * law.tokens_coefficient) + _log_marginal(
        num_tokens, unique_tokens, TOKENS_HALF_LIFE, exponent=law.beta
    )
    return of_params - of_tokens


def _log_marginal(amount: float, base: float, half_life: float, *, exponent: float) -> float:
    """Return the log of -d(x'^-exponent) / (exponent d log x), for x of at least `base`."""
    faded = (amount / base - 1) / half_life
    return math.log(amount) - faded - (exponent + 1) * math.log(_effective(amount, base, half_life))
