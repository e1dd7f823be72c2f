"""Sweeps of which the truth is known, and the 240 points where they are at hand."""

import csv

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.fitting.surface import Surface
from tests.shared_data import shared_data

TRUTH = Surface(irreducible_loss=1.8, params_coefficient=480.0, tokens_coefficient=2085.0, alpha=0.348, beta=0.366)
"""Close to Besiroglu et al. 2024 (arXiv:2404.10102)."""
STEEP = (
    (1.69, 406.4, 410.7, 0.34, 0.28, 1.0),
    (1.8, 9000.0, 30000.0, 0.5, 0.5, 1.0),
    (2.1, 3e5, 800.0, 0.7, 0.3, 1.0),
    (1.5, 2e9, 6e7, 1.2, 0.9, 1.0),
    (0.9, 60.0, 2e5, 0.25, 0.6, 1.0),
    (1.7, 2500.0, 9000.0, 0.42, 0.43, 0.75),
    (1.9, 40.0, 90.0, 0.2, 0.22, 1.6),
)
"""E, A, B, alpha, beta, k of surfaces whose three terms all count in `isoflop_design`."""


def surface_of(constants: tuple[float, ...]) -> Surface:
    names = ("irreducible_loss", "params_coefficient", "tokens_coefficient", "alpha", "beta", "outer_exponent")
    return Surface(**dict(zip(names, constants, strict=True)))


def isoflop_design(*, budgets: int, sizes: int, reach: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Return N and D of `sizes` runs from N*/reach to reach N* at each of `budgets` from 6e18 to 3e21 FLOPs."""
    flops = np.repeat(np.geomspace(6e18, 3e21, budgets), sizes)
    best = np.array([TRUTH.optimal(compute_budget_flops=budget).num_params for budget in flops])
    params = best * np.tile(np.geomspace(1 / reach, reach, sizes), budgets)
    return params, flops / 6 / params


def losses(surface: Surface, num_params: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """The formula, written out."""
    inside = surface.params_coefficient / num_params**surface.alpha
    inside = inside + surface.tokens_coefficient / num_tokens**surface.beta
    return surface.irreducible_loss + inside**surface.outer_exponent


def sweep(
    surface: Surface = TRUTH,
    *,
    budgets: int = 6,
    sizes: int = 9,
    reach: float = 8.0,
    noise: float = 0.0,
    seed: int = 0,
) -> RunTable:
    """Return a sweep whose log losses carry normal noise."""
    num_params, num_tokens = isoflop_design(budgets=budgets, sizes=sizes, reach=reach)
    return noisy(surface, num_params, num_tokens, noise=noise, seed=seed)


def noisy(surface: Surface, num_params: np.ndarray, num_tokens: np.ndarray, *, noise: float, seed: int = 0) -> RunTable:
    error = noise * np.random.default_rng(seed).standard_normal(len(num_params))
    loss = losses(surface, num_params, num_tokens) * np.exp(error)
    return run_table(num_params=num_params, num_tokens=num_tokens, loss=loss)


def chinchilla_points(*, outliers: bool = False) -> RunTable:
    """Return the points that Besiroglu et al. read off the figure of Hoffmann et al.: 240, or all 245."""
    with shared_data("data/scaling/epoch_chinchilla_245.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if outliers or row["excluded_by_epoch"] == "0"]
    columns = {name: [float(row[name]) for row in rows] for name in ("N", "D", "C", "loss")}
    return run_table(num_params=columns["N"], num_tokens=columns["D"], loss=columns["loss"], flops=columns["C"])
