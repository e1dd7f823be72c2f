"""The mixtures to train small runs on: draws around the natural token shares.

Shapes: r = runs, k = sources.
"""

from collections.abc import Sequence

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.data.mixture.simplex import Bounds, project
from chinchilla_ds.errors import ConfigError

TEMPERATURE = 0.5
"""Power of the natural shares: rare sources are drawn more often than they occur. RegMix's value."""
WEAKEST_CONCENTRATION = 1.0
STRONGEST_CONCENTRATION_PER_SOURCE = 3.0
"""Dirichlet concentrations are drawn from 1 to 3 k, evenly in the logarithm.

RegMix's range is 0.1 to 5 for every k: most runs are then near corners, where one source is nearly everything, and
few are near the best mixture. On six synthetic truths each, the excess loss of the predicted best mixture was 1.58 %
with RegMix's range and 0.23 % with ours for 5 sources and 64 runs, but 0.26 and 0.73 % for 3 sources and 24 runs: our
choice favours many sources, and the evidence is thin.
"""
DEFAULT_MIN_SHARE = 2e-4
"""RegMix's value: 100 sequences of 2048 tokens among 10^9 tokens."""
CLOSEST = 1e-2
"""Sum of the differences of two mixtures' weights below which they count as the same."""
_MAX_MISSES = 2000
"""The search for further mixtures stops after this many draws in a row that are too close to an earlier one."""


def design_mixtures(
    *, shares: Sequence[float], num_runs: int, seed: int, min_share: float, bounds: Bounds | None = None
) -> Floats:
    """Return mixtures [r, k] to train on: the natural one first, then draws around its tempered shares.

    Weights below `min_share` are set to 0, and all are multiples of `min_share`, except the natural ones. A draw
    outside `bounds` is then replaced by the nearest mixture within them. They do not apply to the natural mixture.

    Args:
        shares: natural token shares of the sources, [k].
        num_runs: r, the number of mixtures.
        seed: seeds the draws.
        min_share: smallest weight above 0.
        bounds: limits of each source's weight; None: 0 to 1.

    Raises:
        ConfigError: fewer than two sources, settings out of range, or too few different mixtures.

    Source: Liu et al. 2024 (arXiv:2407.01492), section 3.1, and the settings of github.com/sail-sg/regmix; the
        differences are described above.
    """
    natural = np.array(shares) / np.sum(shares)
    _check(num_sources=len(natural), num_runs=num_runs, min_share=min_share)
    tempered = natural**TEMPERATURE / np.sum(natural**TEMPERATURE)
    generator = np.random.default_rng(seed)
    strongest = STRONGEST_CONCENTRATION_PER_SOURCE * len(natural)
    mixtures, misses = [natural], 0
    while len(mixtures) < num_runs and misses < _MAX_MISSES:
        concentration = np.exp(generator.uniform(np.log(WEAKEST_CONCENTRATION), np.log(strongest)))
        draw = generator.dirichlet(np.maximum(tempered * concentration, 1e-3))
        draw = _on_grid(draw, step=min_share)
        if bounds is not None:
            draw = project(draw[None], bounds=bounds)[0]
        if np.abs(np.stack(mixtures) - draw).sum(axis=1).min() >= CLOSEST:
            mixtures.append(draw)
            misses = 0
        else:
            misses += 1
    if len(mixtures) < num_runs:
        raise ConfigError(
            f"`num_runs={num_runs}`: only {len(mixtures)} mixtures of {len(natural)} sources were found whose weights "
            f"differ by {CLOSEST:g} or more in sum; ask for {len(mixtures)}"
        )
    return np.stack(mixtures)


def _check(*, num_sources: int, num_runs: int, min_share: float) -> None:
    problems = []
    if num_sources < 2:
        problems.append(f"there is {num_sources} source; a mixture needs at least 2")
    if num_runs < 2:
        problems.append(f"`num_runs` is {num_runs}; it must be at least 2, and 8 per source work well")
    if not 0 < min_share <= 0.1:
        problems.append(f"`min_share` is {min_share:g}; it must lie above 0 and be at most 0.1")
    if problems:
        raise ConfigError(problems)


def _on_grid(weights: Floats, *, step: float) -> Floats:
    """Return the mixture in multiples of `step`: rounded down, and the largest remainders up."""
    weights = np.where(weights < step, 0.0, weights)
    weights = weights / weights.sum()
    num_steps = round(1 / step)
    counts = np.floor(weights * num_steps + 1e-9)
    for index in np.argsort(-(weights * num_steps - counts), kind="stable"):
        if counts.sum() < num_steps and counts[index] > 0:
            counts[index] += 1
    out: Floats = counts / counts.sum()
    return out
