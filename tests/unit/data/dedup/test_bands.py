"""Bands and rows: the curve, the check of a pair, the choice for a threshold, and what is refused."""

import numpy as np
import pytest
from scipy.integrate import quad

from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig, Unit, choose_bands
from chinchilla_ds.errors import ConfigError


def config(**changes: float) -> MinHashConfig:
    settings = {"shingle_size": 5, "num_permutations": 12, "bands": 3, "rows": 3, "min_similarity": 0.75} | changes
    return MinHashConfig(unit=Unit.WORD, **settings)  # type: ignore[arg-type]


def test_detection_curve_of_the_presets() -> None:
    # FineWeb's own code states 0.924 at 0.8 for 14 x 8
    assert PRESETS["fineweb"].detection_probability(0.8) == pytest.approx(0.924, abs=5e-4)
    assert PRESETS["slimpajama"].detection_probability(0.5) == pytest.approx(1 - (1 - 2**-13) ** 9)


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 0.95])
def test_duplicate_probability_matches_drawn_agreements(jaccard: float) -> None:
    few = config()
    draws = np.random.default_rng(0).random((200_000, few.num_permutations)) < jaccard
    found = draws[:, :9].reshape(-1, 3, 3).all(axis=2).any(axis=1) & (draws.sum(axis=1) >= 9)
    assert few.duplicate_probability(jaccard) == pytest.approx(found.mean(), abs=4.5 * 0.5 / np.sqrt(len(draws)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_check_of_a_pair_costs_nothing_at_0_8_and_keeps_what_is_half_alike(name: str) -> None:
    preset = PRESETS[name]
    assert preset.duplicate_probability(0.8) == pytest.approx(preset.detection_probability(0.8), abs=1e-4)
    assert preset.duplicate_probability(0.95) > 0.99
    assert preset.duplicate_probability(0.5) < 1e-3


def test_without_a_check_both_probabilities_are_one() -> None:
    assert config(min_similarity=0).duplicate_probability(0.6) == pytest.approx(config().detection_probability(0.6))


def datasketch_areas(bands: int, rows: int, threshold: float) -> float:
    """The two integrals of datasketch's lsh.py, by adaptive quadrature."""
    below = quad(lambda s: 1 - (1 - s**rows) ** bands, 0, threshold)[0]
    above = quad(lambda s: (1 - s**rows) ** bands, threshold, 1)[0]
    return float(below + above)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("num_permutations", [16, 64])
def test_choice_is_the_best_by_a_second_way_of_integrating(num_permutations: int, threshold: float) -> None:
    pairs = [(b, r) for b in range(1, num_permutations + 1) for r in range(1, num_permutations // b + 1)]
    best = min(pairs, key=lambda pair: datasketch_areas(*pair, threshold))
    assert choose_bands(num_permutations=num_permutations, threshold=threshold) == best


def test_choice_for_128_permutations_is_the_known_one() -> None:
    # datasketch.MinHashLSH(threshold=0.8, num_perm=128) and SlimPajama use 9 bands of 13 rows
    assert choose_bands(num_permutations=128, threshold=0.8) == (9, 13)


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        config(shingle_size=0, rows=-1, min_similarity=1.5, seed=-1)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "shingle_size",
        "rows",
        "min_similarity",
        "seed",
    ]
    with pytest.raises(
        ConfigError, match=r"bands \(5\) x rows \(3\) = 15 is more than num_permutations \(12\); 4 bands"
    ):
        config(bands=5)
    with pytest.raises(ConfigError, match="threshold is 1; it must lie between 0 and 1"):
        choose_bands(num_permutations=128, threshold=1)
