"""Published rules of learning rate, batch size and weight decay, each with the range that it was fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chinchilla_ds.budget import published_recipes
from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.budget.shape.parameters import count_parameters, params_in_convention
from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.units import format_count

STEP_LAW_PARAMS = (6e7, 1e9)
"""Non-embedding N of Step Law's sweep."""
STEP_LAW_TOKENS = (2e9, 1e11)
DEEPSEEK_FLOPS = (1e17, 2e19)
PORIAN_PARAMS = (5e6, 1.08e8)
POWER_LINES_PARAMS = (1.11e8, 3.3e9)
_OLMO_SEQ_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One published rule's value for a run."""

    name: str
    value: float
    source: str
    in_range: bool
    """Whether the run lies within the range that the rule was fitted on."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A decoder and its tokens as the rules count them."""

    total: float
    """N, all parameters."""
    non_embedding: float
    num_tokens: float
    """D."""
    deepseek_flops: float
    """C = M D."""

    @classmethod
    def of(cls, shape: ModelShape, *, num_tokens: float) -> "Sizes":
        """Count a decoder."""
        counted = count_parameters(shape=shape)
        equivalent = params_in_convention(shape=shape, convention=ParamsConvention.FLOPS_EQUIVALENT)
        return cls(
            total=counted.total,
            non_embedding=counted.non_embedding,
            num_tokens=num_tokens,
            deepseek_flops=6 * equivalent * num_tokens,
        )

    @property
    def in_step_law(self) -> bool:
        """Whether N and D lie within Step Law's sweep."""
        return within(self.non_embedding, STEP_LAW_PARAMS) and within(self.num_tokens, STEP_LAW_TOKENS)

    @property
    def in_recipes(self) -> bool:
        """Whether N and D lie between those of the recipes that the lines are fitted on."""
        return within(self.total, published_recipes.PARAMS_RANGE) and within(
            self.num_tokens, published_recipes.TOKENS_RANGE
        )


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


def deepseek_learning_rate(*, flops: float) -> float:
    """Return DeepSeek's peak learning rate, 0.3118 C^-0.1250, C = M D with M the FLOPs per token of all layers.

    Source: DeepSeek-AI 2024 (arXiv:2401.02954), section 3.1; fitted on 1e17 to 2e19 FLOPs.
    """
    return float(0.3118 * flops**-0.1250)


def power_lines_timescale(*, num_params: float, num_tokens: float) -> float:
    """Return the best time scale of AdamW's weights as a share of the run, 1.084 (D/N)^-0.527.

    AdamW's weights are an exponential moving average of their updates over 1 / (lr wd) steps, B / (lr wd D) of the run
    (Wang and Aitchison 2024, arXiv:2405.13698). N is all parameters.

    Source: Bergsma et al. 2025 (arXiv:2505.13738), section 3; fitted on 111M to 3.3B parameters under muP.
    """
    return float(1.084 * (num_tokens / num_params) ** -0.527)


def power_lines_weight_decay(
    *, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float
) -> float:
    """Return the weight decay of Power Lines' time scale, B / (tau lr D).

    Args:
        num_params: N, all parameters.
        num_tokens: D, training tokens.
        batch_tokens: B, tokens of one optimizer step.
        learning_rate: lr, the peak learning rate.

    Source: as `power_lines_timescale`.
    """
    timescale = power_lines_timescale(num_params=num_params, num_tokens=num_tokens)
    return float(batch_tokens / (timescale * learning_rate * num_tokens))


def learning_rates(*, shape: ModelShape, num_tokens: float) -> tuple[Suggestion, ...]:
    """Return the peak learning rates of published rules, Step Law first.

    Source: each rule's own. Porian et al. (arXiv:2406.19146), as OLMo's model ladder uses it:
    0.0047 (N / 108M)^(-1/3), N non-embedding.
    """
    sizes = Sizes.of(shape, num_tokens=num_tokens)
    return (
        Suggestion(
            name="Step Law",
            value=step_law_learning_rate(non_embedding_params=sizes.non_embedding, num_tokens=num_tokens),
            source="arXiv:2503.04715",
            in_range=sizes.in_step_law,
        ),
        Suggestion(
            name="DeepSeek",
            value=deepseek_learning_rate(flops=sizes.deepseek_flops),
            source="arXiv:2401.02954",
            in_range=within(sizes.deepseek_flops, DEEPSEEK_FLOPS),
        ),
        Suggestion(
            name="Porian",
            value=0.0047 * (sizes.non_embedding / 108e6) ** (-1 / 3),
            source="arXiv:2406.19146, OLMo ladder",
            in_range=within(sizes.non_embedding, PORIAN_PARAMS),
        ),
        Suggestion(
            name="trained models",
            value=published_recipes.recipe_learning_rate(num_params=sizes.total),
            source="published_recipes.RECIPES",
            in_range=sizes.in_recipes,
        ),
    )


def batch_sizes_tokens(*, shape: ModelShape, num_tokens: float) -> tuple[Suggestion, ...]:
    """Return the batch sizes of published rules in tokens, Step Law first.

    Source: as `learning_rates`. DeepSeek: 0.2920 C^0.3271 tokens. Porian et al.: 160 (N / 108M)^(2/3) sequences of
    2048 tokens.
    """
    sizes = Sizes.of(shape, num_tokens=num_tokens)
    return (
        Suggestion(
            name="Step Law",
            value=step_law_batch_tokens(num_tokens=num_tokens),
            source="arXiv:2503.04715",
            in_range=within(num_tokens, STEP_LAW_TOKENS),
        ),
        Suggestion(
            name="DeepSeek",
            value=0.2920 * sizes.deepseek_flops**0.3271,
            source="arXiv:2401.02954",
            in_range=within(sizes.deepseek_flops, DEEPSEEK_FLOPS),
        ),
        Suggestion(
            name="Porian",
            value=160 * _OLMO_SEQ_LENGTH * (sizes.non_embedding / 108e6) ** (2 / 3),
            source="arXiv:2406.19146, OLMo ladder",
            in_range=within(sizes.non_embedding, PORIAN_PARAMS),
        ),
        Suggestion(
            name="trained models",
            value=published_recipes.recipe_batch_tokens(num_params=sizes.total),
            source="published_recipes.RECIPES",
            in_range=sizes.in_recipes,
        ),
    )


def weight_decays(
    *, num_params: float, num_tokens: float, batch_tokens: float, learning_rate: float
) -> tuple[Suggestion, ...]:
    """Return the weight decays of published runs and rules.

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
        Suggestion(
            name="Power Lines",
            value=power_lines,
            source="arXiv:2505.13738",
            in_range=within(num_params, POWER_LINES_PARAMS),
        ),
        Suggestion(name="Step Law's and most teams' runs", value=0.1, source="arXiv:2503.04715", in_range=True),
    )


def spread(suggestions: Sequence[Suggestion], /, *, show: Callable[[float], str] = "{:.2g}".format) -> str:
    """Return the suggestions in one line: `Step Law 0.00031; DeepSeek 0.00022 (outside its range)`."""
    return "; ".join(
        f"{rule.name} {show(rule.value)}{'' if rule.in_range else ' (outside its range)'}" for rule in suggestions
    )


def nearest(sizes: Sizes, /, *, qk_norm: bool) -> str:
    """Return what the two nearest released models were trained with, in one line."""
    models = published_recipes.nearest_recipes(num_params=sizes.total, num_tokens=sizes.num_tokens, qk_norm=qk_norm)
    return " and ".join(
        f"{model.name} on {format_count(model.num_tokens)} tokens {model.learning_rate:.2g} with batches of "
        f"{format_count(model.batch_tokens)}"
        for model in models
    )


def within(value: float, bounds: tuple[float, float]) -> bool:
    """Return whether a value lies in a range, ends included."""
    return bounds[0] <= value <= bounds[1]
