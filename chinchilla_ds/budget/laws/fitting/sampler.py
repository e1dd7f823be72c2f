"""Draws from a posterior by an ensemble of walkers that stretch towards one another."""

from collections.abc import Callable

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats

WALKERS = 48
STEPS = 600
BURN_IN = 300
"""Steps that are thrown away."""
THIN = 30
"""Steps from one set of draws to the next: of the other 300 steps, 10 give 48 draws each."""


def sample(log_density: Callable[[Floats], Floats], /, *, start: Floats, spread: Floats, seed: int) -> Floats:
    """Return draws from a density, [draw, p].

    In each step one half of the walkers moves, each along the line to a random walker of the other half, and then the
    other. The moves do not change under linear maps, so that nothing needs to be tuned to the scales of the parameters.

    Args:
        log_density: returns the logarithm of the density up to a constant, [m], of points, [m, p].
        start: where it is high, [p].
        spread: a lower triangular matrix, [p, p], that turns standard normal numbers into a first guess of the
            deviations from `start`.
        seed: of numpy's generator.

    Source: Goodman and Weare 2010, Ensemble samplers with affine invariance (doi:10.2140/camcos.2010.5.65), stretch
        moves with a = 2, in the two halves of Foreman-Mackey et al. 2013 (arXiv:1202.3665).
    """
    rng = np.random.default_rng(seed)
    num_dimensions, half = len(start), WALKERS // 2
    walkers = start + 0.5 * rng.standard_normal((WALKERS, num_dimensions)) @ spread.T
    value = log_density(walkers)
    walkers[~np.isfinite(value)] = start
    value = log_density(walkers)
    draws = []
    for step in range(STEPS):
        order = rng.permutation(WALKERS)
        for moving, others in ((order[:half], order[half:]), (order[half:], order[:half])):
            stretch = (1 + rng.random(half)) ** 2 / 2
            anchor = walkers[rng.choice(others, half)]
            proposal = anchor + stretch[:, None] * (walkers[moving] - anchor)
            proposed = log_density(proposal)
            accepted = np.log(rng.random(half)) < (num_dimensions - 1) * np.log(stretch) + proposed - value[moving]
            walkers[moving[accepted]], value[moving[accepted]] = proposal[accepted], proposed[accepted]
        if step >= BURN_IN and step % THIN == 0:
            draws.append(walkers.copy())
    return np.concatenate(draws)
