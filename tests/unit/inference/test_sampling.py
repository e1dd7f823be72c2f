"""The distribution that is sampled, against the definition written out; draws, against the distribution."""

import math

import pytest
import torch
from scipy.stats import chisquare

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.inference.sampling import Sampling, choose, draw, probabilities

LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.5, 0.0, 2.0, -4.0, 3.0 - 1e-3])
NUM_DRAWS = 5000
LEAST_P_VALUE = 1e-3
"""Of a chi-square test; seeds are fixed, so a right sampler fails once for all or never."""


def expected_distribution(logits, *, temperature, top_k=None, top_p=None):
    """The definition, in plain Python: temperature, then the k largest, then the fewest that reach p."""
    weights = [math.exp(value / temperature) for value in logits.tolist()]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[: top_k or len(weights)]
    total = sum(weights[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        kept.append(token)
        reached += weights[token] / total
        if top_p is not None and reached >= top_p:
            break
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.7, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "top_k": 100, "top_p": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_are_those_of_the_definition(settings):
    found = probabilities(torch.stack([LOGITS, LOGITS.flip(0)]), sampling=Sampling(**settings))
    wanted = torch.tensor(expected_distribution(LOGITS, **settings), dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack([wanted, wanted.flip(0)]), atol=1e-7, rtol=0)


def p_value(draws, wanted):
    """Of a chi-square test of draws against a distribution; a draw of an impossible token has none."""
    counts = torch.bincount(torch.tensor(draws), minlength=len(wanted)).tolist()
    assert all(count == 0 for count, p in zip(counts, wanted, strict=True) if p == 0), "an impossible token was drawn"
    possible = [token for token, p in enumerate(wanted) if p > 0]
    return chisquare([counts[t] for t in possible], [wanted[t] * len(draws) for t in possible]).pvalue


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[4]], ids=str)
def test_draws_have_the_distribution(settings):
    sampling = Sampling(**settings, seed=3)
    generator = sampling.generator(0)
    draws = [choose(LOGITS, sampling=sampling, generator=generator) for _ in range(NUM_DRAWS)]
    assert p_value(draws, expected_distribution(LOGITS, **settings)) > LEAST_P_VALUE


def test_control_another_temperature_fails_the_same_test():
    sampling = Sampling(temperature=1.2, seed=3)
    generator = sampling.generator(0)
    draws = [choose(LOGITS, sampling=sampling, generator=generator) for _ in range(NUM_DRAWS)]
    assert p_value(draws, expected_distribution(LOGITS, temperature=1.0)) < LEAST_P_VALUE


def test_a_draw_never_ends_on_an_impossible_token():
    distribution = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    assert {draw(distribution, generator=generator) for _ in range(200)} == {1, 3}


def test_greedy_takes_the_most_likely_token_and_is_one_as_a_distribution():
    sampling = Sampling(temperature=0)
    assert choose(LOGITS, sampling=sampling, generator=sampling.generator(0)) == 1
    assert probabilities(LOGITS, sampling=sampling).tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_rows_and_seeds_draw_apart():
    firsts = {
        torch.rand(1, generator=Sampling(seed=seed).generator(row)).item() for seed in range(4) for row in range(4)
    }
    assert len(firsts) == 16


def test_values_that_cannot_be_are_listed():
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-0.1, top_k=0, top_p=1.5, seed=-1)
    assert caught.value.problems == (
        "temperature is -0.1; it must be at least 0 (greedy), 0.8 for example",
        "top_k is 0 tokens; it must be at least 1",
        "top_p is 1.5; it must lie above 0 and not above 1, 0.95 for example",
        "seed is -1; it must lie between 0 and 1099511627775",
    )
