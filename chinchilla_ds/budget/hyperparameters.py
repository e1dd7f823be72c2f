"""Learning rate, batch size and warm-up from published laws, with what holds them back in very small runs."""

from dataclasses import dataclass

MAX_LEARNING_RATE = 2.0**-7
"""Largest learning rate of the sweep that Step Law was fitted on, 2^-10.5 to 2^-7; above, its power law is no guide."""
MIN_TRAIN_ITERS = 200
"""Optimizer steps that a run should have. Adam's second moment (beta2 0.95) needs about 60 steps to settle and warm-up
and decay need their own; below this, fewer sequences per step is the better use of the same tokens."""
WARMUP_FRACTION = 0.1
"""Largest share of the run that warm-up may take."""
MAX_WARMUP_ITERS = 2000
"""Warm-up of Step Law's runs."""
MIN_LEARNING_RATE_FRACTION = 0.1
"""Cosine to a tenth of the peak. Source: Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1 and Appendix B."""
WSD_DECAY_FRACTION = 0.2
"""Share of the run that WSD's last, linear phase takes. Source: Haegele et al. 2024 (arXiv:2405.18392), section 4."""


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A peak learning rate and where it comes from."""

    value: float
    reason: str


def step_law_learning_rate(*, non_embedding_params: float, num_tokens: float) -> float:
    """Return Step Law's peak learning rate, 1.79 N^-0.713 D^0.307.

    N is non-embedding. Fitted on 60M to 1B parameters and 2B to 100B tokens with AdamW (0.9, 0.95), weight decay 0.1,
    2000 steps of warm-up and a cosine to 1e-5. Leaves out the effect of a batch other than Step Law's own.

    Source: Li et al. 2025 (arXiv:2503.04715), equation 1.
    """
    return float(1.79 * non_embedding_params**-0.713 * num_tokens**0.307)


def step_law_batch_tokens(*, num_tokens: float) -> float:
    """Return Step Law's batch in tokens, 0.58 D^0.571.

    Source: Li et al. 2025 (arXiv:2503.04715), equation 1.
    """
    return float(0.58 * num_tokens**0.571)


def choose_learning_rate(*, non_embedding_params: int, num_tokens: float) -> LearningRate:
    """Return Step Law's learning rate, capped at the largest one it was fitted on."""
    law = step_law_learning_rate(non_embedding_params=non_embedding_params, num_tokens=num_tokens)
    source = "Step Law (arXiv:2503.04715) for the non-embedding N and D"
    if law <= MAX_LEARNING_RATE:
        return LearningRate(value=law, reason=f"Learning rate {law:.3g}: {source}.")
    return LearningRate(
        value=MAX_LEARNING_RATE,
        reason=f"Learning rate {MAX_LEARNING_RATE:.3g}: {source} gives {law:.3g}, above 2^-7, the largest of the sweep "
        "it was fitted on, so that is used.",
    )


def choose_warmup_iters(*, num_params: int, tokens_per_iter: int, train_iters: int) -> int:
    """Return warm-up in optimizer steps: N tokens, at most a tenth of the run and 2000 steps, at least one.

    Source: Porian et al. 2024 (arXiv:2406.19146), section 3.3: a warm-up of as many tokens as the model has parameters
    removes the bias that a long fixed warm-up puts on small models. 2000 steps is the warm-up of Step Law's runs.
    """
    wanted = round(num_params / tokens_per_iter)
    return max(1, min(wanted, int(WARMUP_FRACTION * train_iters), MAX_WARMUP_ITERS))
