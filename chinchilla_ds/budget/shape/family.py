"""The decoders of this package as a continuous family: the optimum for a budget if shapes were continuous.

A member is identified by its number of parameters. The aspect ratio and the number of query groups follow from it by
the rules of `search`; layers and heads need not be whole numbers. The discrete shape of a plan is compared with the
best member.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters, params_in_convention
from chinchilla_ds.budget.shape.search import (
    GQA_GROUPS,
    GQA_MIN_PARAMS,
    ShapeRequest,
    kv_channels_of,
    target_aspect_ratio,
)
from chinchilla_ds.run_plan import ModelShape

MOST_PARAMS = 1e16
"""Largest member that is considered."""
AROUND = 16.0
"""Factor around the law's own optimal N within which the best member is searched for."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Member:
    """One decoder of the family."""

    num_params: float
    """All parameters, embeddings included."""
    size: float
    """N in the law's convention."""
    flops_per_token: float
    """Model FLOPs, forward and backward, attention over the full context."""


@dataclass(frozen=True, kw_only=True)
class FamilyOptimum:
    """The member and the number of tokens with the least loss for a budget."""

    member: Member
    num_tokens: float
    loss: float


def member(*, request: ShapeRequest, convention: ParamsConvention) -> Member:
    """Return the member with `request.num_params` parameters.

    Raises:
        ValueError: the embedding tables of the narrowest decoder have more.
    """
    least, most = 1.0, 1e7
    if _shape(least, request)[1] > request.num_params:
        raise ValueError(f"no decoder has {request.num_params:g} parameters")
    while most / least > 1 + 1e-11:
        middle = math.sqrt(least * most)
        least, most = (middle, most) if _shape(middle, request)[1] < request.num_params else (least, middle)
    shape, num_params = _shape(math.sqrt(least * most), request)
    size = params_in_convention(shape=shape, convention=convention)
    return Member(num_params=num_params, size=size, flops_per_token=decoder_flops_per_token(shape=shape))


def best_member(
    *,
    request: ShapeRequest,
    convention: ParamsConvention,
    compute_budget_flops: float,
    loss: Callable[[float, float], float],
    near: float,
) -> FamilyOptimum:
    """Return the member and tokens of least loss whose FLOPs are the budget; `request.num_params` is ignored.

    Args:
        request: vocabulary, sequence length, tied or untied embeddings.
        convention: what the law calls N.
        compute_budget_flops: member.flops_per_token x tokens.
        loss: function of N in that convention and of tokens; it has one minimum in N along the budget.
        near: the law's own optimal N; the decoder's FLOPs shift it, but by less than a factor of AROUND.
    """

    def at(log_params: float) -> FamilyOptimum:
        wanted = _resized(request, math.exp(log_params))
        candidate = member(request=wanted, convention=convention)
        tokens = compute_budget_flops / candidate.flops_per_token
        return FamilyOptimum(member=candidate, num_tokens=tokens, loss=loss(candidate.size, tokens))

    low = max(_shape(1.0, request)[1] * 1.001, near / AROUND)
    high = max(2 * low, near * AROUND)
    return at(minimise(lambda log_params: at(log_params).loss, low=math.log(low), high=math.log(high)))


def member_where(
    quantity: Callable[[Member], float], wanted: float, *, request: ShapeRequest, convention: ParamsConvention
) -> Member:
    """Return the member whose `quantity`, which grows with its parameters, is `wanted`, or the nearest that exists.

    Args:
        quantity: a function of a member that grows with its parameters.
        wanted: the value of `quantity` to match.
        request: vocabulary, context and embeddings of the family.
        convention: what N counts.
    """
    low, high = math.log(_shape(1.0, request)[1] * 1.001), math.log(MOST_PARAMS)
    for _ in range(80):
        middle = (low + high) / 2
        candidate = member(request=_resized(request, math.exp(middle)), convention=convention)
        low, high = (middle, high) if quantity(candidate) < wanted else (low, middle)
    return member(request=_resized(request, math.exp((low + high) / 2)), convention=convention)


def minimise(function: Callable[[float], float], *, low: float, high: float) -> float:
    """Return the minimum's place in [low, high], to 1e-7 of the width, by golden-section search.

    Args:
        function: the function, with one minimum in [low, high].
        low: lower end.
        high: upper end.
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(34):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2


def _resized(request: ShapeRequest, num_params: float) -> ShapeRequest:
    return dataclasses.replace(request, num_params=num_params)


def _shape(hidden_size: float, request: ShapeRequest) -> tuple[ModelShape, float]:
    """Return the member with that hidden size and the aspect ratio of the wanted N, and its number of parameters."""
    kv_channels = kv_channels_of(hidden_size)
    heads = hidden_size / kv_channels
    # Any: a ModelShape has integer sizes; all counts are polynomials in them and accept fractions too
    sizes: dict[str, Any] = {
        "num_layers": hidden_size / target_aspect_ratio(num_params=request.num_params),
        "hidden_size": hidden_size,
        "ffn_hidden_size": 8 * hidden_size / 3,
        "num_attention_heads": heads,
        "num_query_groups": heads if request.num_params < GQA_MIN_PARAMS else GQA_GROUPS,
        "kv_channels": kv_channels,
    }
    shape = ModelShape(
        **sizes,
        vocab_size=request.vocab_size,
        padded_vocab_size=request.padded_vocab_size,
        seq_length=request.seq_length,
        **request.switches(),
    )
    return shape, count_parameters(shape=shape).total
