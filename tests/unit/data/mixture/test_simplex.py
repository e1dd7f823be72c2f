"""Projection and descent against naive searches and closed forms."""

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.data.mixture.simplex import Bounds, descend, project, spread_points


def random_bounds(generator: np.random.Generator, *, num_sources: int) -> Bounds:
    lower = generator.uniform(0, 0.5 / num_sources, num_sources) * generator.integers(0, 2, num_sources)
    upper = np.minimum(1, lower + generator.uniform(0.5 / num_sources, 3 / num_sources, num_sources))
    return Bounds(lower=lower, upper=upper if upper.sum() > 1 else np.ones(num_sources))


@pytest.mark.parametrize("seed", range(20))
def test_projection_equals_bisection(seed: int) -> None:
    generator = np.random.default_rng(seed)
    bounds = random_bounds(generator, num_sources=int(generator.integers(2, 9)))
    points = generator.normal(size=(30, len(bounds.lower)))
    low, high = np.full(30, -50.0), np.full(30, 50.0)
    for _ in range(100):
        middle = (low + high) / 2
        over = np.clip(points - middle[:, None], bounds.lower, bounds.upper).sum(axis=1) > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    wanted = np.clip(points - low[:, None], bounds.lower, bounds.upper)
    np.testing.assert_allclose(project(points, bounds=bounds), wanted, atol=1e-12)


def test_mixtures_within_the_bounds_stay_where_they_are() -> None:
    bounds = Bounds(lower=np.array([0, 0.1, 0]), upper=np.array([0.5, 1, 0.5]))
    points = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(project(points, bounds=bounds), points, atol=1e-15)


def test_bounds_that_leave_one_mixture() -> None:
    only = np.array([0.25, 0.75])
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(project(points, bounds=Bounds(lower=only, upper=only)), np.tile(only, (5, 1)))
    upper = Bounds(lower=np.zeros(2), upper=only)
    np.testing.assert_allclose(project(points, bounds=upper), np.tile(only, (5, 1)))


def test_a_plane_is_least_where_the_cheapest_sources_are_full() -> None:
    bounds = Bounds(lower=np.zeros(4), upper=np.array([0.3, 0.4, 0.5, 1.0]))
    slope = np.array([2.0, 1.0, 3.0, 5.0])
    starts = spread_points(bounds=bounds, num_points=20, seed=0)
    ends = descend(starts, value=lambda w: w @ slope, gradient=lambda w: np.tile(slope, (len(w), 1)), bounds=bounds)
    np.testing.assert_allclose(ends, np.tile([0.3, 0.4, 0.3, 0.0], (20, 1)), atol=1e-5)


def test_each_row_descends_its_own_bowl() -> None:
    bounds = Bounds(lower=np.zeros(3), upper=np.ones(3))
    centers = np.random.default_rng(1).dirichlet(np.ones(3), 10)
    stretch = np.array([1.0, 20.0, 3.0])

    def value(weights: Floats) -> Floats:
        out: Floats = (stretch * (weights - centers) ** 2).sum(axis=1)
        return out

    starts = spread_points(bounds=bounds, num_points=10, seed=0)
    ends = descend(starts, value=value, gradient=lambda w: 2 * stretch * (w - centers), bounds=bounds)
    np.testing.assert_allclose(ends, centers, atol=1e-3)
    assert np.all(value(ends) <= value(starts))


def test_points_are_spread_over_corners_and_middle() -> None:
    bounds = Bounds(lower=np.zeros(3), upper=np.array([1.0, 1.0, 0.4]))
    points = spread_points(bounds=bounds, num_points=300, seed=0)
    np.testing.assert_allclose(points.sum(axis=1), 1)
    assert points.min() >= 0
    assert points[:, 2].max() == pytest.approx(0.4)
    for corner in ([1, 0, 0], [0, 1, 0], [0.3, 0.3, 0.4]):
        assert np.abs(points - corner).sum(axis=1).min() < 0.15
