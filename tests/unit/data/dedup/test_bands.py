"""Bands and rows: the curves of the presets, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest

from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig, Unit
from chinchilla_ds.errors import ConfigError
from tests.unit.data.dedup.probabilities import detection_probability, duplicate_probability


def config(**changes: float) -> MinHashConfig:
    settings = {"shingle_size": 5, "num_permutations": 12, "bands": 3, "rows": 3, "min_similarity": 0.75} | changes
    return MinHashConfig(unit=Unit.WORD, **settings)  # type: ignore[arg-type]


def test_detection_curve_of_the_presets() -> None:
    # FineWeb's own code states 0.924 at 0.8 for 14 x 8
    assert detection_probability(PRESETS["fineweb"], 0.8) == pytest.approx(0.924, abs=5e-4)
    assert detection_probability(PRESETS["slimpajama"], 0.5) == pytest.approx(1 - (1 - 2**-13) ** 9)


DOCUMENTED = {
    ("slimpajama", detection_probability): (0.0011, 0.0117, 0.0839, 0.3988, 0.9286, 0.9985),
    ("slimpajama", duplicate_probability): (0.0000, 0.0045, 0.0819, 0.3988, 0.9286, 0.9985),
    ("fineweb", detection_probability): (0.0533, 0.2111, 0.5645, 0.9235, 0.9996, 1.0000),
    ("fineweb", duplicate_probability): (0.0003, 0.0659, 0.5351, 0.9235, 0.9996, 1.0000),
}


@pytest.mark.parametrize(("name", "probability"), DOCUMENTED)
def test_the_table_of_the_docs(name: str, probability: Callable[[MinHashConfig, float], float]) -> None:
    found = [round(probability(PRESETS[name], jaccard), 4) for jaccard in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]
    assert found == list(DOCUMENTED[name, probability])


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 0.95])
def test_duplicate_probability_matches_drawn_agreements(jaccard: float) -> None:
    few = config()
    draws = np.random.default_rng(0).random((200_000, few.num_permutations)) < jaccard
    found = draws[:, :9].reshape(-1, 3, 3).all(axis=2).any(axis=1) & (draws.sum(axis=1) >= 9)
    assert duplicate_probability(few, jaccard) == pytest.approx(found.mean(), abs=4.5 * 0.5 / np.sqrt(len(draws)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_check_of_a_pair_costs_nothing_at_0_8_and_keeps_what_is_half_alike(name: str) -> None:
    preset = PRESETS[name]
    assert duplicate_probability(preset, 0.8) == pytest.approx(detection_probability(preset, 0.8), abs=1e-4)
    assert duplicate_probability(preset, 0.95) > 0.99
    assert duplicate_probability(preset, 0.5) < 1e-3


def test_without_a_check_both_probabilities_are_one() -> None:
    assert duplicate_probability(config(min_similarity=0), 0.6) == pytest.approx(detection_probability(config(), 0.6))


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
