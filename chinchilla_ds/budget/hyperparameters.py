"""Learning rate, batch size, weight decay and warm-up: what published laws suggest, what is used, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.budget.shape.parameters import count_parameters, params_in_convention
from chinchilla_ds.run_plan import ModelShape

MAX_LEARNING_RATE = 2.0**-7
"""Largest learning rate of the sweep that Step Law was fitted on, 2^-10.5 to 2^-7; above it, its power law is not
reliable."""
MIN_TRAIN_ITERS = 200
"""Optimizer steps that a run should have at least. Adam's second moment (beta2 0.95) needs about 60 steps to settle and
warm-up and decay need their own; below this, fewer sequences per step are a better use of the same tokens."""
WARMUP_FRACTION = 0.1
"""Largest share of the run that warm-up may take."""
MAX_WARMUP_ITERS = 2000
"""Warm-up of Step Law's runs."""
MIN_LEARNING_RATE_FRACTION = 0.1
"""Cosine to a tenth of the peak. Source: Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1 and Appendix B."""
WSD_DECAY_FRACTION = 0.2
"""Share of the run that WSD's last, linear phase takes. Source: Haegele et al. 2024 (arXiv:2405.18392), section 4."""
WEIGHT_DECAY = 0.1
"""Decay of Step Law's and DeepSeek's runs; see `choose_weight_decay`."""
BETA1, BETA2 = 0.9, 0.95
"""Value of Step Law's runs, which the learning rate was fitted on (arXiv:2503.04715)."""
EPSILON = 1e-8
"""Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""
CHINCHILLA_LEARNING_RATE = 1e-4
"""Hoffmann et al. 2022 (arXiv:2203.15556), Table 4: Chinchilla 70B."""
CHINCHILLA_BATCH_TOKENS = 3e6
"""Hoffmann et al. 2022, Table 4: 1.5M tokens, then 3M from the middle of the run."""
_CHINCHILLA_PARAMS = (35e9, 140e9)
"""A factor of two around that one model."""
_STEP_LAW_PARAMS = (6e7, 1e9)
_STEP_LAW_TOKENS = (2e9, 1e11)
_DEEPSEEK_FLOPS = (1e17, 2e19)
_PORIAN_PARAMS = (5e6, 1.08e8)
_POWER_LINES_PARAMS = (1.11e8, 3.3e9)
_OLMO_SEQ_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One published law's value for a run."""

    name: str
    value: float
    source: str
    in_range: bool
    """Whether the run lies within the range that the law was fitted on."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The value that is used, and its source."""

    value: float
    reason: str


def step_law_learning_rate(*, non_embedding_params: float, num_tokens: float) -> float:
    """Return Step Law's peak learning rate, 1.79 N^-0.713 D^0.307.

    N is non-embedding. Fitted on 60M to 1B parameters and 2B to 100B tokens with AdamW (0.9, 0.95), weight decay 0.1,
    2000 steps of warm-up and a cosine to 1e-5. Leaves out the effect of a batch other than Step Law's.

    Source: Li et al. 2025 (arXiv:2503.04715), equation 1.
    """
    return float(1.79 * non_embedding_params**-0.713 * num_tokens**0.307)


def step_law_batch_tokens(*, num_tokens: float) -> float:
    """Return Step Law's batch in tokens, 0.58 D^0.571.

    Source: Li et al. 2025 (arXiv:2503.04715), equation 1.
    """
    return float(0.58 * num_tokens**0.571)


def choose_learning_rate(*, non_embedding_params: int, num_tokens: float) -> Choice:
    """Return Step Law's learning rate, capped at the largest one it was fitted on.

    Of the laws in `learning_rates` it is based on the most runs, treats N and D separately, so that over-trained models
    are covered, and was fitted on decoders like ours with our betas and decay.
    """
    law = step_law_learning_rate(non_embedding_params=non_embedding_params, num_tokens=num_tokens)
    source = "Step Law (arXiv:2503.04715) for the non-embedding N and D"
    if law <= MAX_LEARNING_RATE:
        return Choice(value=law, reason=f"Learning rate {law:.3g}: {source}.")
    return Choice(
        value=MAX_LEARNING_RATE,
        reason=f"Learning rate {MAX_LEARNING_RATE:.3g}: {source} gives {law:.3g}, above 2^-7, the largest of the sweep "
        "it was fitted on, so that is used.",
    )


def choose_warmup_iters(*, num_params: int, tokens_per_iter: int, train_iters: int) -> int:
    """Return warm-up in optimizer steps: N tokens, at most a tenth of the run and 2000 steps, at least one.

    Args:
        num_params: N, all parameters.
        tokens_per_iter: tokens of one optimizer step.
        train_iters: optimizer steps of the run.

    Source: Porian et al. 2024 (arXiv:2406.19146), section 3.3: a warm-up of as many tokens as the model has parameters
    removes the bias that a long fixed warm-up puts on small models. 2000 steps is the warm-up of Step Law's runs.
    """
    wanted = round(num_params / tokens_per_iter)
    return max(1, min(wanted, int(WARMUP_FRACTION * train_iters), MAX_WARMUP_ITERS))


def choose_weight_decay(*, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float) -> Choice:
    """Return 0.1, and report Power Lines' value beside it.

    The learning rates were fitted at 0.1, and with Step Law's rate and batch Power Lines gives nearly the same; a batch
    or a rate that the user sets does not change it, because the law was fitted under muP, which this decoder does not
    use.

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens.
        batch_tokens: tokens of one optimizer step.
        learning_rate: peak learning rate.
    """
    said = power_lines_weight_decay(
        num_params=num_params, num_tokens=num_tokens, batch_tokens=batch_tokens, learning_rate=learning_rate
    )
    return Choice(
        value=WEIGHT_DECAY,
        reason=f"Weight decay {WEIGHT_DECAY:g}: that of the runs the learning rate was fitted on; Power Lines "
        f"(arXiv:2505.13738) gives {said:.2g} for this batch and learning rate.",
    )


def power_lines_weight_decay(
    *, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float
) -> float:
    """Return Power Lines' weight decay, B / (tau lr D) with tau = 1.084 (D/N)^-0.527.

    B and D are in tokens, N is all parameters. Fitted on 111M to 3.3B parameters under muP. Its optimal batch grows as
    D^0.383 and its critical batch as D^0.462.

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens.
        batch_tokens: B, tokens of one optimizer step.
        learning_rate: lr, the peak learning rate.

    Source: Bergsma et al. 2025 (arXiv:2505.13738), section 3.
    """
    timescale = 1.084 * (num_tokens / num_params) ** -0.527
    return float(batch_tokens / (timescale * learning_rate * num_tokens))


def learning_rates(*, shape: ModelShape, num_tokens: float) -> tuple[Suggestion, ...]:
    """Return the peak learning rates of published laws, Step Law first.

    Source: each law's own. DeepSeek: 0.3118 C^-0.1250 with C = M D, M the FLOPs per token outside the embeddings
    (arXiv:2401.02954, section 3.1). Porian et al. (arXiv:2406.19146), as OLMo's model ladder uses it:
    0.0047 (N / 108M)^(-1/3), N non-embedding.
    """
    sizes = _Sizes.of(shape, num_tokens=num_tokens)
    step_law = step_law_learning_rate(non_embedding_params=sizes.non_embedding, num_tokens=num_tokens)
    return (
        Suggestion(name="Step Law", value=step_law, source="arXiv:2503.04715", in_range=sizes.in_step_law),
        Suggestion(
            name="DeepSeek",
            value=0.3118 * sizes.deepseek_flops**-0.1250,
            source="arXiv:2401.02954",
            in_range=_within(sizes.deepseek_flops, _DEEPSEEK_FLOPS),
        ),
        Suggestion(
            name="Porian",
            value=0.0047 * (sizes.non_embedding / 108e6) ** (-1 / 3),
            source="arXiv:2406.19146, OLMo ladder",
            in_range=_within(sizes.non_embedding, _PORIAN_PARAMS),
        ),
        Suggestion(
            name="Chinchilla 70B",
            value=CHINCHILLA_LEARNING_RATE,
            source="arXiv:2203.15556",
            in_range=_within(sizes.total, _CHINCHILLA_PARAMS),
        ),
    )


def batch_sizes_tokens(*, shape: ModelShape, num_tokens: float) -> tuple[Suggestion, ...]:
    """Return the batch sizes of published laws in tokens, Step Law first.

    Source: as `learning_rates`. DeepSeek: 0.2920 C^0.3271 tokens. Porian et al.: 160 (N / 108M)^(2/3) sequences of
    2048 tokens.
    """
    sizes = _Sizes.of(shape, num_tokens=num_tokens)
    return (
        Suggestion(
            name="Step Law",
            value=step_law_batch_tokens(num_tokens=num_tokens),
            source="arXiv:2503.04715",
            in_range=_within(num_tokens, _STEP_LAW_TOKENS),
        ),
        Suggestion(
            name="DeepSeek",
            value=0.2920 * sizes.deepseek_flops**0.3271,
            source="arXiv:2401.02954",
            in_range=_within(sizes.deepseek_flops, _DEEPSEEK_FLOPS),
        ),
        Suggestion(
            name="Porian",
            value=160 * _OLMO_SEQ_LENGTH * (sizes.non_embedding / 108e6) ** (2 / 3),
            source="arXiv:2406.19146, OLMo ladder",
            in_range=_within(sizes.non_embedding, _PORIAN_PARAMS),
        ),
        Suggestion(
            name="Chinchilla 70B",
            value=CHINCHILLA_BATCH_TOKENS,
            source="arXiv:2203.15556",
            in_range=_within(sizes.total, _CHINCHILLA_PARAMS),
        ),
    )


def weight_decays(
    *, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float
) -> tuple[Suggestion, ...]:
    """Return the weight decays of published runs and laws, the one that is used first.

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens.
        batch_tokens: tokens of one optimizer step.
        learning_rate: peak learning rate.
    """
    power_lines = power_lines_weight_decay(
        num_params=num_params, num_tokens=num_tokens, batch_tokens=batch_tokens, learning_rate=learning_rate
    )
    return (
        Suggestion(name="Step Law's runs", value=WEIGHT_DECAY, source="arXiv:2503.04715", in_range=True),
        Suggestion(
            name="Power Lines",
            value=power_lines,
            source="arXiv:2505.13738",
            in_range=_within(num_params, _POWER_LINES_PARAMS),
        ),
    )


def spread(suggestions: Sequence[Suggestion], /, *, show: Callable[[float], str] = "{:.2g}".format) -> str:
    """Return the suggestions in one line: `Step Law 0.00031; DeepSeek 0.00022 (outside its range)`."""
    return "; ".join(
        f"{one.name} {show(one.value)}{'' if one.in_range else ' (outside its range)'}" for one in suggestions
    )


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """A decoder and its tokens as the laws count them."""

    total: float
    non_embedding: float
    deepseek_flops: float
    """C = M D."""
    in_step_law: bool

    @classmethod
    def of(cls, shape: ModelShape, *, num_tokens: float) -> "_Sizes":
        counted = count_parameters(shape=shape)
        equivalent = params_in_convention(shape=shape, convention=ParamsConvention.FLOPS_EQUIVALENT)
        fitted = _within(counted.non_embedding, _STEP_LAW_PARAMS) and _within(num_tokens, _STEP_LAW_TOKENS)
        return cls(
            total=counted.total,
            non_embedding=counted.non_embedding,
            deepseek_flops=6 * equivalent * num_tokens,
            in_step_law=fitted,
        )


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]
