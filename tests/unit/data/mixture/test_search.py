"""The search on synthetic domains whose best mixture is known."""

import numpy as np
import pytest

from benchmarks.mixture import FAMILIES, least_loss
from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.data.mixture.regression import FORMS
from chinchilla_ds.data.mixture.sampling import design_mixtures
from chinchilla_ds.data.mixture.search import MixtureFit, epoch_bounds, rank_correlation, search_mixture
from chinchilla_ds.data.mixture.simplex import Bounds
from chinchilla_ds.data.mixture.table import MixtureRuns
from chinchilla_ds.errors import ConfigError, DataError
from tests.unit.data.mixture.synthetic import Truth, random_truth

SHARES = {3: (0.6, 0.3, 0.1), 4: (0.5, 0.3, 0.15, 0.05), 6: (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)}


def runs_of(truth: Truth, *, num_sources: int, num_runs: int, seed: int, caps: Bounds | None = None) -> MixtureRuns:
    weights = design_mixtures(shares=SHARES[num_sources], num_runs=num_runs, seed=seed, min_share=2e-4, bounds=caps)
    return MixtureRuns(
        sources=tuple("abcdef"[:num_sources]),
        weights=weights,
        losses=truth.noisy(weights, seed=seed + 100),
        targets=("loss",),
        natural=weights[0],
    )


def search(runs: MixtureRuns, *, caps: Bounds | None = None, num_draws: int = 40) -> MixtureFit:
    return search_mixture(runs, natural=runs.weights[0], caps=caps, num_draws=num_draws, seed=0)


def predict(fit: MixtureFit, weights: Floats, *, form: str | None = None) -> Floats:
    losses = fit.runs.losses
    regression = FORMS[form or fit.chosen](fit.runs.weights, (losses - losses.mean()) / losses.std())
    coefficients = regression.solve((losses - losses.mean()) / losses.std(), np.ones(len(losses)))
    out: Floats = regression.terms(weights) @ coefficients
    return out


@pytest.mark.parametrize(
    ("num_sources", "num_runs", "more_domains"),
    [(3, 32, 0), (3, 32, 2), (4, 48, 0), (4, 48, 2), (6, 64, 0), (6, 64, 2)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_are_ranked_and_the_best_mixture_is_found(
    num_sources: int, num_runs: int, more_domains: int, seed: int
) -> None:
    truth = random_truth(num_sources=num_sources, seed=seed, more_domains=more_domains)
    fit = search(runs_of(truth, num_sources=num_sources, num_runs=num_runs, seed=seed))
    unseen = design_mixtures(shares=SHARES[num_sources], num_runs=200, seed=seed + 1000, min_share=2e-4)
    assert rank_correlation(predict(fit, unseen), truth.loss(unseen)) >= 0.9
    # a plane does not: the truths bend enough for the bar to mean something
    assert rank_correlation(predict(fit, unseen, form="linear"), truth.loss(unseen)) < 0.9
    found, natural = truth.loss(fit.best[None])[0], truth.loss(fit.natural[None])[0]
    assert found / truth.least() - 1 < 0.03
    assert found < natural


@pytest.mark.parametrize("family", ["exponential", "bigram"])
def test_losses_of_other_families_are_ranked_too(family: str) -> None:
    loss = FAMILIES[family](4, 7)
    weights = design_mixtures(shares=SHARES[4], num_runs=48, seed=7, min_share=2e-4)
    losses = loss(weights) * (1 + 0.005 * np.random.default_rng(7).normal(size=48))
    fit = search(
        MixtureRuns(sources=tuple("abcd"), weights=weights, losses=losses, targets=("loss",), natural=weights[0])
    )
    unseen = design_mixtures(shares=SHARES[4], num_runs=200, seed=1007, min_share=2e-4)
    assert rank_correlation(predict(fit, unseen), loss(unseen)) >= 0.9
    assert loss(fit.best[None])[0] / least_loss(loss, num_sources=4) - 1 < 0.02


def test_caps_are_kept_and_the_best_within_them_is_found() -> None:
    truth = random_truth(num_sources=4, seed=3)
    caps = epoch_bounds(available_tokens=1e9 * np.array(SHARES[4]), num_tokens=2e9, max_epochs=4)
    np.testing.assert_allclose(caps.upper, [1, 0.6, 0.3, 0.1])
    fit = search(runs_of(truth, num_sources=4, num_runs=48, seed=0, caps=caps), caps=caps)
    assert np.all(fit.best <= caps.upper + 1e-9)
    assert truth.loss(fit.best[None])[0] / truth.least(upper=caps.upper) - 1 < 0.01


def test_caps_that_no_mixture_keeps_name_what_works() -> None:
    with pytest.raises(ConfigError) as caught:
        epoch_bounds(available_tokens=np.array([1e6, 3e6]), num_tokens=1.8e7, max_epochs=4)
    assert "`num_tokens=16000000`" in caught.value.problems[0]
    assert "`max_epochs=4.5`" in caught.value.problems[0]
    for tokens, epochs in ((1.6e7, 4), (1.8e7, 4.5)):
        assert (
            epoch_bounds(available_tokens=np.array([1e6, 3e6]), num_tokens=tokens, max_epochs=epochs).upper.sum() >= 1
        )


def test_caps_outside_what_was_tried_are_refused() -> None:
    runs = runs_of(random_truth(num_sources=3, seed=0), num_sources=3, num_runs=32, seed=0)
    narrow = MixtureRuns(
        sources=runs.sources, weights=0.9 * runs.weights[:1] + 0.1 * runs.weights, losses=runs.losses,
        targets=runs.targets, natural=None,
    )  # fmt: skip
    caps = Bounds(lower=np.zeros(3), upper=np.array([0.1, 0.5, 0.9]))
    with pytest.raises(DataError, match="tried"):
        search_mixture(narrow, natural=narrow.weights[0], caps=caps, num_draws=20, seed=0)


@pytest.mark.slow
def test_noise_alone_is_no_evidence() -> None:
    generator = np.random.default_rng(0)
    claims = 0
    for seed in range(10):
        weights = design_mixtures(shares=SHARES[3], num_runs=24, seed=seed, min_share=2e-4)
        losses = 3 * (1 + 0.005 * generator.normal(size=24))
        runs = MixtureRuns(sources=("a", "b", "c"), weights=weights, losses=losses, targets=("loss",), natural=None)
        claims += search(runs).is_better
    assert claims <= 3


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = np.zeros(3)
    for seed in range(20):
        truth = random_truth(num_sources=3, seed=seed, more_domains=seed % 2)
        fit = search(runs_of(truth, num_sources=3, num_runs=24, seed=seed))
        best, natural = truth.loss(fit.best[None])[0], truth.loss(fit.natural[None])[0]
        pairs = ((fit.loss, best), (fit.natural_loss, natural), (fit.gain, natural - best))
        held += [estimate.low <= value <= estimate.high for estimate, value in pairs]
        assert fit.loss.high - fit.loss.low < 0.2 * best
    assert np.all(held / 20 >= 0.6)  # of 0.8: 20 draws fall below 12 in 1 of 100


def test_the_result_comes_from_the_seed() -> None:
    runs = runs_of(random_truth(num_sources=3, seed=0), num_sources=3, num_runs=24, seed=0)
    first, same = search(runs), search(runs)
    assert (first.gain, first.loss) == (same.gain, same.loss)
    np.testing.assert_array_equal(first.best, same.best)


def test_rank_correlation_equals_scipys_with_ties() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, 50).astype(float), generator.normal(size=50)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(np.ones(50), second) == 0
