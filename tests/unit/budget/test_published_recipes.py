"""What the planner chooses for published recipes, on the half that nothing was fitted on, and the fit of the others.

The split, alternate rows sorted by name, and the factor were decided before anything was scored.
"""

import statistics

import pytest

from benchmarks.recipes import fit_line, met
from chinchilla_ds.budget.hyperparameter_rules import step_law_batch_tokens, step_law_learning_rate
from chinchilla_ds.budget.planner import plan
from chinchilla_ds.budget.published_recipes import (
    FITTED,
    QK_NORM_RECIPES,
    RECIPES,
    SCORED,
    nearest_recipes,
    recipe_batch_tokens,
    recipe_learning_rate,
)
from chinchilla_ds.config import RunConfig
from chinchilla_ds.run_plan import RunPlan


def _met(chosen: list[float], published: list[float]) -> int:
    return met([one / other for one, other in zip(chosen, published, strict=True)])


@pytest.fixture(scope="module")
def plans() -> list[RunPlan]:
    """The plans of `chinchilla-ds plan --params N --tokens D` for the scored half."""
    return [
        plan(RunConfig(num_params=one.num_params, num_tokens=one.num_tokens), world_size=1, device="cuda")
        for one in SCORED
    ]


def test_learning_rate_and_batch_are_within_a_factor_of_two_for_twelve_of_fifteen(plans: list[RunPlan]) -> None:
    """Step Law alone, the control, meets three learning rates and eleven batches."""
    assert len(SCORED) == 15
    rates, batches = [one.learning_rate for one in SCORED], [one.batch_tokens for one in SCORED]
    assert _met([made.optimizer.learning_rate for made in plans], rates) >= 12
    assert _met([float(made.tokens_per_iter) for made in plans], batches) >= 12
    step_law = [
        step_law_learning_rate(non_embedding_params=one.num_params, num_tokens=one.num_tokens) for one in SCORED
    ]
    assert _met(step_law, rates) < 6
    assert _met([step_law_batch_tokens(num_tokens=one.num_tokens) for one in SCORED], batches) < 13


def test_warm_up_of_trillions_of_tokens_is_not_a_hundred_steps(plans: list[RunPlan]) -> None:
    published = [(made, one) for made, one in zip(plans, SCORED, strict=True) if one.warmup_tokens is not None]
    ratios = [made.schedule.warmup_iters * made.tokens_per_iter / one.warmup_tokens for made, one in published]
    assert 0.5 < statistics.median(ratios) < 2


@pytest.mark.parametrize("name", ["learning_rate", "batch_tokens"])
def test_the_lines_are_those_of_least_absolute_deviations_through_the_fitted_half(name: str) -> None:
    value, exponent = fit_line(FITTED, name=name)
    line = {"learning_rate": recipe_learning_rate, "batch_tokens": recipe_batch_tokens}[name]
    for num_params in (1e9, 1e11):
        fitted = value * (num_params / 1e9) ** exponent
        assert line(num_params=num_params) == pytest.approx(fitted, rel=0.005)


def test_the_tables_are_sorted_so_that_the_split_is_not_a_choice() -> None:
    for table in (RECIPES, QK_NORM_RECIPES):
        names = [one.name.casefold() for one in table]
        assert names == sorted(set(names))
    assert len(RECIPES) >= 30
    assert {*FITTED, *SCORED} == {*RECIPES}


def test_every_recipe_names_its_source_and_lies_in_the_range_of_released_models() -> None:
    for one in (*RECIPES, *QK_NORM_RECIPES):
        assert one.source
        assert one.num_tokens >= 10 * one.num_params
        assert 5e-5 < one.learning_rate < 6e-3
        assert 1e6 < one.batch_tokens < 2e7
        assert one.weight_decay is None or 0.01 <= one.weight_decay <= 0.1


def test_nearest_recipes() -> None:
    assert [one.name for one in nearest_recipes(num_params=1.1e9, num_tokens=3e12)] == ["TinyLlama 1.1B", "OLMo 1B"]
    assert nearest_recipes(num_params=3e9, num_tokens=1.5e12, qk_norm=True, count=1)[0].name == "OpenELM 3B"
