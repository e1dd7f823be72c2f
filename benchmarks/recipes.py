"""What the planner chooses for published recipes, beside what their teams trained with.

    python benchmarks/recipes.py

Fits the two lines of `budget/published_recipes.py` on the first half of its recipes (alternate rows, sorted by name)
and prints both halves and the models with QK-norm: the chosen learning rate, batch, warm-up and time scale of the
weight decay over the published ones. The rules may be changed after looking at the first half only. At the end every
recipe is scored with lines through the recipes of all other teams.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from scipy.optimize import linprog

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.hyperparameter_rules import power_lines_timescale, step_law_learning_rate
from chinchilla_ds.budget.planner import plan
from chinchilla_ds.budget.published_recipes import FITTED, QK_NORM_RECIPES, RECIPES, SCORED, PublishedRecipe
from chinchilla_ds.config import RunConfig
from chinchilla_ds.units import format_count

FACTOR = 2.0
"""A value counts as met within this factor either way."""


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Chosen over published; None where nothing is published."""

    learning_rate: float
    batch_tokens: float
    warmup_tokens: float | None
    timescale: float | None
    """Power Lines' best time scale of AdamW over that of the recipe."""
    step_law: float
    """Step Law's learning rate, as it is, over the published one."""


def fit_line(recipes: Sequence[PublishedRecipe], /, *, name: str) -> tuple[float, float]:
    """Return value at 1e9 parameters and exponent of the power law in N of least absolute deviations in logarithms.

    Args:
        recipes: those to fit.
        name: the field of the recipes.
    """
    values = np.log([getattr(recipe, name) for recipe in recipes])
    sizes = np.log([recipe.num_params / 1e9 for recipe in recipes])
    ones, count = np.ones_like(sizes), len(sizes)
    # constant, exponent, then the parts of each residual above and below the line
    rows = np.column_stack([ones, sizes, np.eye(count), -np.eye(count)])
    cost = [0.0, 0.0, *[1.0] * (2 * count)]
    bounds = [(None, None), (None, None), *[(0.0, None)] * (2 * count)]
    solved = linprog(cost, A_eq=rows, b_eq=values, bounds=bounds)
    return float(np.exp(solved.x[0])), float(solved.x[1])


def ratios(recipe: PublishedRecipe, /, *, qk_norm: bool = False) -> Ratios:
    """Return what is planned for the N and D of a recipe, over what it was trained with."""
    config = RunConfig(num_params=recipe.num_params, num_tokens=recipe.num_tokens, qk_norm=qk_norm)
    made = plan(config, world_size=1, device="cuda")
    warmup = timescale = None
    if recipe.warmup_tokens is not None:
        warmup = made.schedule.warmup_iters * made.tokens_per_iter / recipe.warmup_tokens
    if recipe.weight_decay is not None:
        trained = recipe.batch_tokens / (recipe.learning_rate * recipe.weight_decay * recipe.num_tokens)
        timescale = power_lines_timescale(num_params=recipe.num_params, num_tokens=recipe.num_tokens) / trained
    step_law = step_law_learning_rate(non_embedding_params=recipe.num_params, num_tokens=recipe.num_tokens)
    return Ratios(
        learning_rate=made.optimizer.learning_rate / recipe.learning_rate,
        batch_tokens=made.tokens_per_iter / recipe.batch_tokens,
        warmup_tokens=warmup,
        timescale=timescale,
        step_law=step_law / recipe.learning_rate,
    )


def team(recipe: PublishedRecipe, /) -> str:
    """Return who trained a model: Meta Llama and MobileLLM, others the first word of the name without its version."""
    word = recipe.name.split()[0]
    return "Meta" if word in ("Llama", "MobileLLM") else word.rstrip("0123456789")


def ratios_without_team(recipe: PublishedRecipe, /) -> Ratios:
    """Return the ratios with lines that are fitted on the recipes of all other teams."""
    others = [other for other in RECIPES if team(other) != team(recipe)]

    def line(name: str) -> Callable[..., float]:
        value, exponent = fit_line(others, name=name)
        return lambda *, num_params: value * (num_params / 1e9) ** exponent

    with (
        patch.object(hyperparameters, "recipe_learning_rate", line("learning_rate")),
        patch.object(hyperparameters, "recipe_batch_tokens", line("batch_tokens")),
    ):
        return ratios(recipe)


def met(values: Sequence[float], /) -> int:
    """Return how many ratios lie within FACTOR."""
    return sum(1 / FACTOR <= value <= FACTOR for value in values)


def main() -> int:
    """Print the fits, the tables and the scores."""
    for name in ("learning_rate", "batch_tokens"):
        value, exponent = fit_line(FITTED, name=name)
        print(f"{name} of the fitted half: {value:.4g} (N / 1e9)^{exponent:.4f}")
    for title, recipes, qk_norm in (
        ("Fitted", FITTED, False),
        ("Scored", SCORED, False),
        ("With QK-norm", QK_NORM_RECIPES, True),
    ):
        print(f"\n{title}\n| recipe | N | D | learning rate | batch | warm-up | time scale | Step Law alone |")
        print("|---|---|---|---|---|---|---|---|")
        found = [ratios(recipe, qk_norm=qk_norm) for recipe in recipes]
        for recipe, one in zip(recipes, found, strict=True):
            cells = (one.learning_rate, one.batch_tokens, one.warmup_tokens, one.timescale, one.step_law)
            texts = " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells)
            sizes = f"{format_count(recipe.num_params)} | {format_count(recipe.num_tokens)}"
            print(f"| {recipe.name} | {sizes} | {texts} |")
        for name in ("learning_rate", "batch_tokens", "warmup_tokens", "timescale", "step_law"):
            values = [value for one in found if (value := getattr(one, name)) is not None]
            print(f"{name}: {met(values)} of {len(values)} within {FACTOR:g}, median {statistics.median(values):.2f}")
    without = [ratios_without_team(recipe) for recipe in RECIPES]
    print(f"\nEvery team left out once, {len({team(recipe) for recipe in RECIPES})} teams")
    for name in ("learning_rate", "batch_tokens"):
        print(f"{name}: {met([getattr(one, name) for one in without])} of {len(without)} within {FACTOR:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
