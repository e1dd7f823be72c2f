"""Designs: what every row must be, whatever the seed."""

import numpy as np
import pytest

from chinchilla_ds.data.mixture.sampling import CLOSEST, design_mixtures
from chinchilla_ds.data.mixture.simplex import Bounds
from chinchilla_ds.data.mixture.table import rounded_weights
from chinchilla_ds.errors import ConfigError

SHARES = (700.0, 200.0, 90.0, 10.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_different_mixtures_and_the_first_is_natural(seed: int) -> None:
    mixtures = design_mixtures(shares=SHARES, num_runs=40, seed=seed, min_share=1e-3)
    np.testing.assert_allclose(mixtures[0], [0.7, 0.2, 0.09, 0.01])
    np.testing.assert_allclose(mixtures.sum(axis=1), 1)
    steps = mixtures[1:] * 1000
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    assert mixtures.min() >= 0
    apart = np.abs(mixtures[:, None] - mixtures[None]).sum(axis=2) + 9 * np.eye(40)
    assert apart.min() >= CLOSEST


def test_the_seed_decides() -> None:
    first, same, other = (design_mixtures(shares=SHARES, num_runs=8, seed=s, min_share=1e-3) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first[1:] - other[1:]).max() > 0.1


def test_the_mean_is_the_tempered_share() -> None:
    mixtures = design_mixtures(shares=SHARES, num_runs=1500, seed=0, min_share=1e-4)[1:]
    tempered = np.sqrt(SHARES) / np.sqrt(SHARES).sum()
    np.testing.assert_allclose(mixtures.mean(axis=0), tempered, atol=0.03)


def test_caps_are_kept() -> None:
    bounds = Bounds(lower=np.zeros(4), upper=np.array([1.0, 0.3, 0.2, 0.02]))
    mixtures = design_mixtures(shares=SHARES, num_runs=40, seed=0, min_share=1e-3, bounds=bounds)
    assert np.all(mixtures <= bounds.upper + 1e-12)
    assert mixtures[:, 3].max() == pytest.approx(0.02)


def test_impossible_designs_are_refused_with_all_reasons() -> None:
    with pytest.raises(ConfigError) as caught:
        design_mixtures(shares=(5.0,), num_runs=1, seed=0, min_share=0.5)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "there is 1 source",
        "`num_runs` is 1",
        "`min_share` is 0.5",
    ]
    with pytest.raises(ConfigError, match="ask for"):
        design_mixtures(shares=(1.0, 1.0), num_runs=300, seed=0, min_share=0.1)


def test_rounded_weights_sum_to_one() -> None:
    for weights in np.random.default_rng(0).dirichlet(np.ones(7), 50):
        rounded = rounded_weights(weights)
        assert round(rounded.sum() * 10**6) == 10**6
        assert np.abs(rounded - weights).max() < 1e-6 + 1e-12


def test_rounding_stays_below_the_caps() -> None:
    weights = np.array([1 / 3, 1 / 3, 1 / 3])
    assert rounded_weights(weights).tolist() == [0.333334, 0.333333, 0.333333]
    assert rounded_weights(weights, upper=np.array([1 / 3, 0.5, 1 / 3])).tolist() == [0.333333, 0.333334, 0.333333]
