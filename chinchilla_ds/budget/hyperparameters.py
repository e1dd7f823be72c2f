"""Learning rate, batch size, weight decay and warm-up of a run: which rule decides, and why.

Step Law decides within the range of its sweep. Beyond it, its weight falls to nothing over a factor of ten in N or D,
and the geometric mean of DeepSeek's rule and of what teams took at that size gains it.
"""

import math
from dataclasses import dataclass

from chinchilla_ds.budget import hyperparameter_rules as rules
from chinchilla_ds.budget.hyperparameter_rules import Sizes
from chinchilla_ds.budget.published_recipes import recipe_batch_tokens, recipe_learning_rate
from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.units import format_count

MAX_LEARNING_RATE = 2.0**-7
"""Largest learning rate of the sweep that Step Law was fitted on, 2^-10.5 to 2^-7; above it, its power law is not
reliable."""
MAX_TOKENS_PER_PARAM = 20.0
"""Step Law's learning rate grows with D because its batch does. It counts D up to this many tokens per parameter; a
longer run keeps the rate. At an equal batch the best rate even falls with D (Bjorck et al. 2024, arXiv:2409.19913)."""
MIN_TRAIN_ITERS = 200
"""Optimizer steps that a run should have at least. Adam's second moment (beta2 0.95) needs about 60 steps to settle and
warm-up and decay need their own; below this, fewer sequences per step are a better use of the same tokens."""
MIN_WARMUP_FRACTION = 0.004
"""Smallest share of the run that warm-up takes, up to MAX_WARMUP_ITERS: the median of `published_recipes.FITTED`."""
MAX_WARMUP_FRACTION = 0.1
"""Largest share of the run that warm-up may take."""
MAX_WARMUP_ITERS = 2000
"""Warm-up of Step Law's runs and of most published recipes."""
MIN_LEARNING_RATE_FRACTION = 0.1
"""Cosine to a tenth of the peak. Source: Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1 and Appendix B."""
WSD_DECAY_FRACTION = 0.2
"""Share of the run that WSD's last, linear phase takes. Source: Haegele et al. 2024 (arXiv:2405.18392), section 4."""
WEIGHT_DECAY = 0.1
"""Decay of Step Law's and DeepSeek's runs, where Power Lines' time scale was not fitted."""
WEIGHT_DECAY_RANGE = (0.01, 0.2)
"""The least that a published recipe has (SmolLM 135M), and the most that a sweep of AdamW has found best (Wen et al.
2025, arXiv:2509.02046, 520M parameters)."""
BETA1, BETA2 = 0.9, 0.95
"""Value of Step Law's runs, which the learning rate was fitted on (arXiv:2503.04715)."""
EPSILON = 1e-8
"""Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The value that is used, and its source."""

    value: float
    in_range: bool
    """Whether a rule that was fitted on runs of this N and D decided it."""
    reason: str


def choose_learning_rate(*, shape: ModelShape, num_tokens: float) -> Choice:
    """Return the peak learning rate.

    Of the rules in `hyperparameter_rules.learning_rates`, Step Law is based on the most runs, treats N and D
    separately, and was fitted on decoders like ours with our betas and decay. Below its N and D it stays, capped at the
    largest rate of its sweep.
    """
    sizes = Sizes.of(shape, num_tokens=num_tokens)
    counted = min(num_tokens, MAX_TOKENS_PER_PARAM * sizes.non_embedding)
    law = rules.step_law_learning_rate(non_embedding_params=sizes.non_embedding, num_tokens=counted)
    deepseek = rules.deepseek_learning_rate(flops=sizes.deepseek_flops)
    teams = recipe_learning_rate(num_params=sizes.total)
    weight = _step_law_weight(num_tokens, sizes.non_embedding)
    value = min(MAX_LEARNING_RATE, law**weight * (deepseek * teams) ** ((1 - weight) / 2))
    in_range = sizes.in_step_law or sizes.in_recipes
    mark = "" if in_range else ", outside every rule's fitted range"
    reason = f"Learning rate {value:.3g}{mark}: {_rate_source(sizes, weight=weight, counted=counted, law=law)}."
    if weight < 1:
        reason += f" Nearest models: {rules.nearest(sizes, qk_norm=shape.qk_norm)}."
    return Choice(value=value, in_range=in_range, reason=reason)


def _rate_source(sizes: Sizes, *, weight: float, counted: float, law: float) -> str:
    """Return which rules make the learning rate, with the D that Step Law counts and its value there."""
    step_law = "Step Law (arXiv:2503.04715) for the non-embedding N and D"
    if counted < sizes.num_tokens:
        step_law += f", of which it counts {MAX_TOKENS_PER_PARAM:g} tokens per parameter"
    others = "the geometric mean of DeepSeek's rule and of what teams take at this size"
    if weight == 0:
        return f"{others}; Step Law's sweep is more than ten times smaller"
    if weight < 1:
        return f"{step_law}, {law:.3g}, weighs {weight:.0%} this far beyond its sweep, and {others} the rest"
    if law > MAX_LEARNING_RATE:
        return f"{step_law} gives {law:.3g}, above 2^-7, the largest of the sweep it was fitted on, so that is used"
    return step_law


def choose_batch_tokens(*, num_params: float, num_tokens: float) -> float:
    """Return the batch in tokens: Step Law's, and beyond its tokens more and more what teams take at that size.

    DeepSeek's rule has no part in it: it gives two to five times the batches of all teams but its own.

    Args:
        num_params: N, all parameters.
        num_tokens: D.
    """
    weight = _step_law_weight(num_tokens)
    law = rules.step_law_batch_tokens(num_tokens=num_tokens)
    return float(law**weight * recipe_batch_tokens(num_params=num_params) ** (1 - weight))


def batch_source(*, num_params: float, num_tokens: float) -> str:
    """Return which rules make the batch, and its size in tokens before it is rounded.

    Args:
        num_params: N, all parameters.
        num_tokens: D.
    """
    value = format_count(choose_batch_tokens(num_params=num_params, num_tokens=num_tokens))
    weight = _step_law_weight(num_tokens)
    teams = f"what teams take at this size, {format_count(recipe_batch_tokens(num_params=num_params))}"
    if weight == 1:
        return f"Step Law's {value} (arXiv:2503.04715)"
    if weight == 0:
        return f"{teams}; Step Law's sweep is more than ten times shorter"
    return f"{value}: Step Law (arXiv:2503.04715) weighs {weight:.0%} this far beyond its sweep, and {teams}, the rest"


def _step_law_weight(num_tokens: float, non_embedding_params: float = 1.0) -> float:
    """Return 1 up to Step Law's largest N and D, and 0 from ten times that; linear in the logarithm between."""
    beyond = max(num_tokens / rules.STEP_LAW_TOKENS[1], non_embedding_params / rules.STEP_LAW_PARAMS[1], 1.0)
    return max(0.0, 1.0 - math.log10(beyond))


def choose_warmup_iters(*, num_params: int, tokens_per_iter: int, train_iters: int) -> int:
    """Return warm-up in optimizer steps: N tokens, or MIN_WARMUP_FRACTION of the run where that is more.

    It takes at most a tenth of the run and 2000 steps, and at least one.

    Args:
        num_params: N, all parameters.
        tokens_per_iter: tokens of one optimizer step.
        train_iters: optimizer steps of the run.

    Source: Porian et al. 2024 (arXiv:2406.19146), section 3.3: a warm-up of as many tokens as the model has parameters
    removes the bias that a long fixed warm-up puts on small models. For runs of many tokens per parameter it would be
    far below what teams take. 2000 steps is the warm-up of Step Law's runs and of most of theirs.
    """
    wanted = max(round(num_params / tokens_per_iter), round(MIN_WARMUP_FRACTION * train_iters))
    return max(1, min(wanted, int(MAX_WARMUP_FRACTION * train_iters), MAX_WARMUP_ITERS))


def choose_weight_decay(*, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float) -> Choice:
    """Return the decay of Power Lines' time scale, B / (tau lr D), within WEIGHT_DECAY_RANGE.

    Below the N that the time scale was fitted on it is 0.1. Above, 22 of the 25 published recipes whose decay is
    printed lie within a factor of two of it.

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens.
        batch_tokens: tokens of one optimizer step.
        learning_rate: peak learning rate.
    """
    low, high = rules.POWER_LINES_PARAMS
    timescale = rules.power_lines_timescale(num_params=num_params, num_tokens=num_tokens)
    law = rules.power_lines_weight_decay(
        num_params=num_params, num_tokens=num_tokens, batch_tokens=batch_tokens, learning_rate=learning_rate
    )
    if num_params < low:
        return Choice(
            value=WEIGHT_DECAY,
            in_range=False,
            reason=f"Weight decay {WEIGHT_DECAY:g}: that of the runs the learning rate was fitted on. Power Lines "
            f"(arXiv:2505.13738), fitted on {format_count(low)} parameters and more, gives {law:.2g}.",
        )
    value = float(f"{min(max(law, WEIGHT_DECAY_RANGE[0]), WEIGHT_DECAY_RANGE[1]):.2g}")
    share = batch_tokens / (learning_rate * value * num_tokens)
    return Choice(
        value=value,
        in_range=num_params <= high,
        reason=f"Weight decay {value:g}{'' if num_params <= high else ', outside its fitted range'}: AdamW's weights "
        f"then average over {share:.2g} of the run, B / (lr wd D); Power Lines (arXiv:2505.13738) finds "
        f"{timescale:.2g} best for this D / N"
        + (f", a decay of {law:.2g}, beyond what has been trained with." if value != float(f"{law:.2g}") else "."),
    )
