import dataclasses
import math

import pytest

from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.budget.laws.lookup import LAWS
from chinchilla_ds.budget.shape.family import best_member, member, member_where, minimise
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.budget.shape.search import ShapeRequest, target_aspect_ratio
from chinchilla_ds.run_plan import ModelShape

REQUEST = ShapeRequest(num_params=1.0, vocab_size=32000, seq_length=2048, tied_embeddings=False)
TOTAL = ParamsConvention.TOTAL


def of(num_params: float) -> ShapeRequest:
    return dataclasses.replace(REQUEST, num_params=num_params)


def test_a_discrete_shape_of_the_family_is_its_member() -> None:
    # 36 layers of 4608 have the aspect ratio 128 of the family above 7e9, 8 query groups of 128, and an FFN of 8/3 h
    shape = ModelShape(
        num_layers=36,
        hidden_size=4608,
        ffn_hidden_size=12288,
        num_attention_heads=36,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=32000,
        padded_vocab_size=32000,
        seq_length=2048,
    )
    num_params = count_parameters(shape=shape).total
    assert target_aspect_ratio(num_params=num_params) == 128
    found = member(request=of(num_params), convention=TOTAL)
    assert found.num_params == pytest.approx(num_params, rel=1e-9)
    assert found.flops_per_token == pytest.approx(decoder_flops_per_token(shape=shape), rel=1e-9)


@pytest.mark.parametrize("num_params", [1e8, 7e9, 1e12])
def test_a_member_has_the_parameters_asked_for(num_params: float) -> None:
    found = member(request=of(num_params), convention=TOTAL)
    assert found.num_params == pytest.approx(num_params, rel=1e-9)
    assert found.size < found.num_params  # one table of two


def test_no_member_is_smaller_than_its_tables() -> None:
    with pytest.raises(ValueError, match="no decoder has"):
        member(request=of(1e4), convention=TOTAL)


@pytest.mark.parametrize("budget", [1e18, 1e21, 1e24])
def test_the_best_member_is_better_than_its_neighbours(budget: float) -> None:
    law = LAWS["besiroglu2024"]

    def loss(size: float, tokens: float) -> float:
        return law.loss(num_params=size, num_tokens=tokens)

    near = law.optimal(compute_budget_flops=budget).num_params
    best = best_member(request=REQUEST, convention=TOTAL, compute_budget_flops=budget, loss=loss, near=near)
    assert best.member.flops_per_token * best.num_tokens == pytest.approx(budget, rel=1e-12)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = member(request=of(best.member.num_params * factor), convention=TOTAL)
        assert loss(other.size, budget / other.flops_per_token) > best.loss


def test_with_6nd_for_flops_the_best_member_is_the_law_s_own() -> None:
    # With 1 token of context attention vanishes: the decoder's FLOPs are 6 N but for norms.
    request = dataclasses.replace(REQUEST, seq_length=1)
    law = LAWS["besiroglu2024"]
    best = best_member(
        request=request,
        convention=TOTAL,
        compute_budget_flops=1e22,
        loss=lambda size, tokens: law.loss(num_params=size, num_tokens=tokens),
        near=1e9,
    )
    closed_form = law.optimal(compute_budget_flops=1e22)
    assert best.member.size == pytest.approx(closed_form.num_params, rel=5e-3)
    assert best.loss == pytest.approx(closed_form.loss, rel=1e-4)


def test_member_where_inverts() -> None:
    wanted = member(request=of(3e9), convention=TOTAL)
    found = member_where(lambda one: one.flops_per_token, wanted.flops_per_token, request=REQUEST, convention=TOTAL)
    assert found.num_params == pytest.approx(3e9, rel=1e-6)


def test_golden_section() -> None:
    assert minimise(lambda x: math.cosh(x - 0.7), low=-5, high=9) == pytest.approx(0.7, abs=1e-5)
