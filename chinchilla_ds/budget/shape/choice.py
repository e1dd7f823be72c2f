"""N and D: from a budget, a size, a number of tokens, or two of them, to one discrete decoder and its tokens.

Any two of the three quantities in C = F(N) D determine the third; if only one is given, the scaling law chooses the
others. F is the exact count of our decoder's FLOPs per token, not 6 N.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chinchilla_ds.budget.laws.choice import Laws, choose_laws, repetition_laws
from chinchilla_ds.budget.laws.forms import MAX_EXTRAPOLATION
from chinchilla_ds.budget.laws.inference_demand import InferenceOptimum, optimal_with_inference
from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.laws.repetition import effective_tokens, optimal_with_repetition
from chinchilla_ds.budget.shape.family import FamilyOptimum, Member, best_member, member, member_where
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters, params_in_convention
from chinchilla_ds.budget.shape.published import decoder_of, named_shape
from chinchilla_ds.budget.shape.search import (
    MAX_RELATIVE_MISS,
    ShapeRequest,
    choose_seq_length,
    choose_vocab_size,
    search_shape,
    shape_with_flops,
    smallest_shape,
    target_aspect_ratio,
)
from chinchilla_ds.config import DEFAULT_BUDGET_FLOPS, RunConfig
from chinchilla_ds.errors import ConfigError, PlanError
from chinchilla_ds.run_plan import MAX_AMOUNT, ModelShape
from chinchilla_ds.units import format_count, format_flops

MAX_OVERTRAINING = 10.0
"""Largest factor by which planning for inference may increase the training budget; models trained further beyond their
optimum lie outside the range that Sardana et al. 2023 checked (10,000 tokens per parameter)."""
MAX_OVERSPENDING = 1.05
"""Largest share of the budget that a decoder may spend if both the budget and the tokens are given."""
MAX_OVERSIZE = 4.0
"""The smallest decoder is used if the law's N is smaller by at most this factor."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A decoder, its tokens, and the law that predicts its loss."""

    shape: ModelShape
    wanted_tokens: float
    """D before rounding to whole optimizer steps."""
    compute_budget_flops: float
    """Budget of shape and tokens."""
    laws: Laws
    optimum: FamilyOptimum
    """The best member of the continuous family for the budget, by the law of N and D; its loss is the loss law's."""
    reasons: tuple[str, ...]
    objective_flops_per_token: float = 0.0
    """The objective's FLOPs besides the decoder's; the budget pays for both."""


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """The request, with the law that completes it."""

    laws: Laws
    request: ShapeRequest
    """Vocabulary and sequence length; num_params is 1 until N is known."""
    budget: float | None
    params: float | None
    """Wanted N, embeddings included."""
    size: float | None
    """Wanted N in the law's convention."""
    tokens: float | None
    loss: float | None = None
    """The loss that the tokens must reach, if the model will be served."""


def choose_model(config: RunConfig, /) -> ModelChoice:
    """Return the decoder and tokens for what `config` gives of budget, size and tokens.

    Raises:
        ConfigError: an unknown law or shape.
        PlanError: no shape is near enough to the wanted N, or so small a model needs more tokens than can be planned.
    """
    choice = _choose(config, laws=choose_laws(config.law, nominal_budget_flops=nominal_budget(config)))
    if choice.wanted_tokens > MAX_AMOUNT:
        params = count_parameters(shape=choice.shape).total
        raise PlanError(
            f"{format_flops(choice.compute_budget_flops)} on {format_count(params)} parameters are "
            f"{choice.wanted_tokens:.2g} tokens; at most {MAX_AMOUNT:.0e} can be planned: give a larger "
            "model or a smaller budget"
        )
    unique_tokens = config.unique_tokens
    if unique_tokens is None or choice.wanted_tokens <= unique_tokens:
        return choice
    try:
        repeating = _choose(config, laws=repetition_laws(unique_tokens=unique_tokens))
    except PlanError as error:
        raise PlanError(
            [f"{problem}, with {format_count(unique_tokens)} unique tokens" for problem in error.problems]
        ) from None
    why = _repetition_reason(choice.wanted_tokens, repeating.wanted_tokens, unique_tokens=unique_tokens)
    return dataclasses.replace(repeating, reasons=(*repeating.reasons, why))


def nominal_budget(config: RunConfig, /) -> float:
    """Return the budget in FLOPs, by 6 N D, that vocabulary and sequence length are chosen for."""
    law = get_law(config.law or DEFAULT_LAW)
    params = _asked_params(config)
    if config.compute_budget_flops is not None:
        return config.compute_budget_flops
    if params is not None and config.num_tokens is not None:
        return 6 * params * config.num_tokens
    if params is not None:
        return law.budget_for_params(num_params=params)
    if config.num_tokens is not None:
        return law.budget_for_tokens(num_tokens=config.num_tokens)
    return DEFAULT_BUDGET_FLOPS


def _asked_params(config: RunConfig) -> float | None:
    if config.shape is None:
        return config.num_params
    return float(count_parameters(shape=_named(config, seq_length=1)).total)


def _named(config: RunConfig, *, seq_length: int) -> ModelShape:
    assert config.shape is not None
    return decoder_of(
        named_shape(config.shape),
        seq_length=seq_length,
        vocab_size=config.vocab_size,
        switches=config,
    )


def _choose(config: RunConfig, *, laws: Laws) -> ModelChoice:
    nominal = nominal_budget(config)
    seq_length = config.seq_length or choose_seq_length(compute_budget_flops=nominal)
    given = None if config.shape is None else _named(config, seq_length=seq_length)
    request = ShapeRequest(
        num_params=1.0,
        vocab_size=given.vocab_size if given else config.vocab_size or choose_vocab_size(compute_budget_flops=nominal),
        seq_length=seq_length,
        **(given or config).switches(),
    )
    nothing = config.compute_budget_flops is None and config.num_tokens is None and _asked_params(config) is None
    wish = _Wish(
        laws=laws,
        request=request,
        budget=DEFAULT_BUDGET_FLOPS if nothing else config.compute_budget_flops,
        size=None,
        params=_asked_params(config),
        tokens=config.num_tokens,
    )
    served = None
    if config.inference_tokens is not None:
        served = _serve(wish, inference_tokens=config.inference_tokens)
        wish = dataclasses.replace(wish, budget=None, size=served.num_params, loss=served.loss)
    best = _best(wish)
    shape = given or _discrete(wish, best, nominal=nominal)
    tokens = _tokens(wish, shape)
    budget = wish.budget or decoder_flops_per_token(shape=shape) * tokens
    return ModelChoice(
        shape=shape,
        wanted_tokens=tokens,
        compute_budget_flops=budget,
        laws=laws,
        optimum=_optimum(wish, budget),
        reasons=(*_reasons(config, wish, shape=shape, best=best), *_serving_reasons(served, nominal=nominal)),
    )


def _serve(wish: _Wish, *, inference_tokens: float) -> InferenceOptimum:
    """Return N and D that reach the loss of the budget's optimum with the least training and serving FLOPs."""
    if not wish.laws.is_one:
        raise ConfigError(
            f"`inference_tokens` needs a law that predicts loss, but {wish.laws.law.name!r} gives only the "
            f"optimum; nearest: `law={DEFAULT_LAW}`"
        )
    assert wish.budget is not None, "config_problems allows inference_tokens only with a budget"
    loss = _optimum(wish, wish.budget).loss
    served = optimal_with_inference(law=wish.laws.losses.law, loss=loss, inference_tokens=inference_tokens)
    if served.train_flops > MAX_OVERTRAINING * wish.budget:
        raise ConfigError(
            f"to serve {format_count(inference_tokens)} tokens at the loss of {format_flops(wish.budget)}, training "
            f"alone would take {served.train_flops / wish.budget:.3g} times that budget, beyond {MAX_OVERTRAINING:g} "
            "times: serve fewer tokens, or give a larger budget"
        )
    return served


def _serving_reasons(served: InferenceOptimum | None, *, nominal: float) -> Iterator[str]:
    if served is not None:
        yield (
            f"To serve {format_count(served.inference_tokens)} tokens: the loss of the best model for "
            f"{format_flops(nominal)}, by a smaller model trained longer. Training takes "
            f"{served.train_flops / nominal:.3g} times as many FLOPs, and training and serving together save "
            f"{format_flops(served.saved_flops)} (Sardana et al. 2023, arXiv:2401.00448)."
        )


def _best(wish: _Wish) -> Member:
    """Return the member of the family to build: the requested one, or the best for the budget."""
    law = wish.laws.law
    if wish.params is not None:
        return _where(wish, lambda candidate: candidate.num_params, wish.params)
    if wish.size is not None:
        return _where(wish, lambda candidate: candidate.size, wish.size)
    if wish.budget is not None and wish.tokens is not None:
        return _where(wish, lambda candidate: candidate.flops_per_token, wish.budget / wish.tokens)
    if wish.tokens is not None:
        size = law.optimal(compute_budget_flops=law.budget_for_tokens(num_tokens=wish.tokens)).num_params
        return _where(wish, lambda candidate: candidate.size, size)
    assert wish.budget is not None
    return _optimum(wish, wish.budget).member


def _where(wish: _Wish, quantity: Callable[[Member], float], wanted: float) -> Member:
    return member_where(quantity, wanted, request=wish.request, convention=wish.laws.law.params_convention)


def _optimum(wish: _Wish, budget: float) -> FamilyOptimum:
    """Return the best member for a budget: that of least loss, or of the size given by a law without a loss."""
    laws, losses = wish.laws, wish.laws.losses
    size = laws.law.optimal(compute_budget_flops=budget).num_params
    if laws.is_one:
        if losses.unique_tokens is not None:
            size = optimal_with_repetition(compute_budget_flops=budget, unique_tokens=losses.unique_tokens).num_params
        convention = laws.law.params_convention
        return best_member(
            request=wish.request, convention=convention, compute_budget_flops=budget, loss=losses, near=size
        )
    best = _where(wish, lambda candidate: candidate.size, size)
    tokens = budget / best.flops_per_token
    request = dataclasses.replace(wish.request, num_params=best.num_params)
    counted = member(request=request, convention=losses.law.params_convention)
    return FamilyOptimum(member=best, num_tokens=tokens, loss=losses(counted.size, tokens))


def _tokens(wish: _Wish, shape: ModelShape) -> float:
    law = wish.laws.law
    size = params_in_convention(shape=shape, convention=law.params_convention)
    if wish.loss is not None:
        tokens = wish.laws.losses.law.tokens_for_loss(num_params=size, loss=wish.loss)
        assert tokens is not None, "the shape is within a quarter of a size that reaches the loss"
        return tokens
    if wish.tokens is not None:
        return wish.tokens
    if wish.budget is not None:
        return wish.budget / decoder_flops_per_token(shape=shape)
    return law.optimal(compute_budget_flops=law.budget_for_params(num_params=size)).num_tokens


def _loss_excess(wish: _Wish, budget: float) -> Callable[[ModelShape], float]:
    """Return the excess of a shape's loss over the continuous optimum for the budget, as a share of the optimum."""
    losses, optimum = wish.laws.losses, _optimum(wish, budget)

    def excess(shape: ModelShape) -> float:
        size = params_in_convention(shape=shape, convention=losses.law.params_convention)
        return losses(size, budget / decoder_flops_per_token(shape=shape)) / optimum.loss - 1

    return excess


def _discrete(wish: _Wish, best: Member, *, nominal: float) -> ModelShape:
    request = dataclasses.replace(wish.request, num_params=best.num_params)
    # where the law's loss is not reliable, it does not constrain the shape
    trusted = wish.laws.is_one and wish.laws.law.extrapolation(compute_budget_flops=nominal) <= MAX_EXTRAPOLATION
    free = wish.params is None and wish.size is None and wish.tokens is None
    excess = _loss_excess(wish, wish.budget) if trusted and free and wish.budget is not None else None
    shape = search_shape(request=request, loss_excess=excess)
    if wish.budget is not None and wish.tokens is not None:
        return _with_budget_and_tokens(shape, request=request, budget=wish.budget, tokens=wish.tokens)
    if shape is not None:
        return shape
    smallest = smallest_shape(request=request)
    least = count_parameters(shape=smallest).total
    if 1 < least / best.num_params <= MAX_OVERSIZE and wish.params is None:
        return smallest
    budget = "" if wish.budget is None else f"compute_budget_flops ({format_flops(wish.budget)}): "
    wanted = f"{budget}the law {wish.laws.law.name!r} calls for N = {format_count(best.num_params)} parameters"
    if wish.params is not None:
        wanted = f"`num_params` ({format_count(wish.params)} parameters) has no shape"
    if least > best.num_params:
        raise PlanError(
            f"{wanted}, and the smallest model with a vocabulary of {request.vocab_size} pieces has "
            f"{format_count(least)}{_enough_tokens(wish, least)}"
        )
    raise PlanError(f"{wanted}, and no shape of the search lies within a factor {MAX_RELATIVE_MISS:g} of it")


def _with_budget_and_tokens(
    shape: ModelShape | None, *, request: ShapeRequest, budget: float, tokens: float
) -> ModelShape:
    """Return the shape, or one that fits better, in the FFN width that spends the budget on the tokens.

    Args:
        shape: the nearest to the request; None: there is none.
        request: the size whose FLOPs are the budget's over the tokens.
        budget: FLOPs.
        tokens: D.

    Raises:
        ConfigError: even the smallest decoder spends more, with both values and the tokens that fit.
    """
    fitted = shape_with_flops(shape, request=request, flops_per_token=budget / tokens)
    if decoder_flops_per_token(shape=fitted) * tokens <= MAX_OVERSPENDING * budget:
        return fitted
    per_token = decoder_flops_per_token(shape=smallest_shape(request=request))
    digit = 10.0 ** (math.floor(math.log10(budget / per_token)) - 2)
    raise ConfigError(
        f"`num_tokens` ({format_count(tokens)} tokens) cannot be paid from `compute_budget_flops` "
        f"({format_flops(budget)}): the smallest decoder with a vocabulary of {request.vocab_size} pieces takes "
        f"{format_flops(per_token)} per token, {per_token * tokens / budget:.3g} times the budget; at most "
        f"{format_count(budget / per_token // digit * digit)} tokens fit"
    )


def _enough_tokens(wish: _Wish, least: int) -> str:
    """Return the tokens for which the law chooses the smallest model, if only tokens were given."""
    if wish.tokens is None or wish.budget is not None:
        return ""
    law = wish.laws.law
    tokens = law.optimal(compute_budget_flops=law.budget_for_params(num_params=least)).num_tokens
    return f"; nearest: about {format_count(tokens)} tokens, for which the law chooses that size"


def _reasons(config: RunConfig, wish: _Wish, *, shape: ModelShape, best: Member) -> Iterator[str]:
    if config.shape is not None:
        yield f"Shape {config.shape.lower()}: {named_shape(config.shape).source}."
    else:
        target = target_aspect_ratio(num_params=best.num_params)
        if count_parameters(shape=shape).total > MAX_RELATIVE_MISS * best.num_params:
            yield f"The smallest decoder with {shape.vocab_size} pieces: the law calls for a smaller one."
        yield (
            f"{shape.num_layers} layers of {shape.hidden_size}: nearest to N = {format_count(best.num_params)} and to "
            f"{target:.0f} hidden channels per layer; independent of the layout."
        )
    if config.vocab_size is None and config.shape is None:
        yield f"Vocabulary {shape.vocab_size}: by budget, so that a small model is not mostly embedding tables."


def _repetition_reason(without: float, tokens: float, *, unique_tokens: float) -> str:
    """Return why the law is another one; `without` is D where all tokens count as distinct, `tokens` is D now."""
    if tokens <= unique_tokens:
        read = f"By that law D is {format_count(tokens)}, which they cover."
    else:
        worth = effective_tokens(num_tokens=tokens, unique_tokens=unique_tokens)
        read = (
            f"Each is read {tokens / unique_tokens:.3g} times; the {format_count(tokens)} tokens are worth "
            f"{format_count(worth)} distinct ones."
        )
    return (
        f"{format_count(unique_tokens)} unique tokens are fewer than the {format_count(without)} that the run would "
        "take: N, D and the loss are those of Muennighoff et al. 2023 (arXiv:2305.16264), in which each "
        f"repetition is worth less than the one before. {read}"
    )
