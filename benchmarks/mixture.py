"""What a mixture search promises, on synthetic truths that nothing in it was tuned on.

    python benchmarks/mixture.py [--truths 60] [--families power,exponential,bigram]

Three families of truths, none of which has the form of a regression:

* power: the tests' own family (tests/unit/data/mixture/synthetic.py), with other seeds. The intervals' widening was
  chosen on seeds of this family below 100, so new seeds are independent draws of the same kind.
* exponential: each domain's loss is c + k exp(-t . w), with a random t. Source: Ye et al. 2024 (arXiv:2403.16952).
* bigram: sources are random Markov chains; the model is their bigram counts after 20,000 tokens of the mixture, with
  add-one smoothing, and its loss on each domain is computed exactly. No formula of a loss stands behind it.

The evaluation weighs the domains at random. A run's loss has 0.5 % noise. Each search has its own truth, design, noise
and bootstrap. An interval is said to hold when the true value lies in it; the standard error of a share p of n truths
is sqrt(p (1 - p) / n).
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.data.mixture.regression import FORMS
from chinchilla_ds.data.mixture.sampling import design_mixtures
from chinchilla_ds.data.mixture.search import MixtureFit, rank_correlation, search_mixture
from chinchilla_ds.data.mixture.table import MixtureRuns
from tests.unit.data.mixture.synthetic import random_truth

Loss = Callable[[Floats], Floats]
"""From mixtures [m, k] to their true losses [m]."""

FIRST_SEED = 10_000
"""The tests use seeds below 100."""
SIZES = ((3, 24), (4, 48), (6, 64))
"""Sources, and runs."""
SHARES = {3: (0.6, 0.3, 0.1), 4: (0.5, 0.3, 0.15, 0.05), 6: (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)}
NOISE = 0.005
NUM_DRAWS = 200
NUM_UNSEEN = 200
VOCAB_SIZE, BIGRAM_TOKENS = 32, 20_000


def power(num_sources: int, seed: int) -> Loss:
    """Return a truth of the tests' family."""
    return random_truth(num_sources=num_sources, seed=seed, more_domains=seed % 2).loss


def exponential(num_sources: int, seed: int) -> Loss:
    """Return a truth of Ye et al.'s data mixing law: a source helps its own domain most, others less, some it harms."""
    generator = np.random.default_rng(seed)
    floor, height = generator.uniform(1.2, 2.5, num_sources), generator.uniform(0.8, 3, num_sources)
    slopes = generator.uniform(-0.5, 1.0, (num_sources, num_sources))
    slopes[np.diag_indices(num_sources)] = generator.uniform(1.0, 5.0, num_sources)
    share = generator.dirichlet(np.full(num_sources, 2.0))

    def loss(weights: Floats) -> Floats:
        out: Floats = (floor + height * np.exp(-weights @ slopes.T)) @ share
        return out

    return loss


def bigram(num_sources: int, seed: int) -> Loss:
    """Return the exact loss of a smoothed bigram model trained on the expected counts of a mixture."""
    generator = np.random.default_rng(seed)
    common = generator.dirichlet(np.full(VOCAB_SIZE, 0.1), VOCAB_SIZE)
    own = generator.dirichlet(np.full(VOCAB_SIZE, 0.1), (num_sources, VOCAB_SIZE))
    mix = generator.uniform(0.2, 0.9, (num_sources, 1, 1))
    pairs = np.stack([_pair_shares(chain) for chain in mix * own + (1 - mix) * common])  # [k, V, V]
    share = generator.dirichlet(np.full(num_sources, 2.0))
    target = np.tensordot(share, pairs, axes=1)

    def loss(weights: Floats) -> Floats:
        counts = BIGRAM_TOKENS * np.tensordot(weights, pairs, axes=1) + 1
        predicted = counts / counts.sum(axis=2, keepdims=True)
        out: Floats = -(target * np.log(predicted)).sum(axis=(1, 2))
        return out

    return loss


def _pair_shares(chain: Floats) -> Floats:
    """Return how often each pair of tokens follows one another in a Markov chain, [V, V]; sums to 1."""
    stationary = np.linalg.matrix_power(chain, 4096)[0]
    out: Floats = stationary[:, None] * chain
    return out


_REGRETS = ("regret", "best_run_regret", "natural_regret")
"""Loss above the least there is: of the mixture found, of the best small run's, and of the natural one."""
FAMILIES = {"power": power, "exponential": exponential, "bigram": bigram}


def least_loss(loss: Loss, /, *, num_sources: int) -> float:
    """Return the least true loss of all mixtures, by exchange between pairs of sources in ever smaller portions.

    It begins at the best of 3000 random mixtures, as not every family is convex.
    """
    points = np.random.default_rng(0).dirichlet(np.ones(num_sources), 3000)
    best = points[loss(points).argmin()]
    unit = np.eye(num_sources)
    moves = np.array([one - other for one in unit for other in unit if np.any(one != other)])
    portion = 0.25
    while portion > 1e-5:
        trials = best + portion * moves
        trials = trials[np.all(trials >= 0, axis=1)]
        losses = loss(trials) if len(trials) else np.array([np.inf])
        if losses.min() < loss(best[None])[0] - 1e-12:
            best = trials[losses.argmin()]
        else:
            portion /= 2
    return float(loss(best[None])[0])


def search_once(task: tuple[str, int, int, int]) -> dict[str, float]:
    """Search on one truth; return what came of it."""
    family, num_sources, num_runs, seed = task
    loss = FAMILIES[family](num_sources, seed)
    weights = design_mixtures(shares=SHARES[num_sources], num_runs=num_runs, seed=seed, min_share=2e-4)
    noise = np.random.default_rng(seed + 10**6).normal(size=num_runs)
    runs = MixtureRuns(
        sources=tuple("abcdef"[:num_sources]),
        weights=weights,
        losses=loss(weights) * (1 + NOISE * noise),
        targets=("loss",),
        natural=weights[0],
    )
    fit = search_mixture(runs, natural=weights[0], caps=None, num_draws=NUM_DRAWS, seed=seed)
    unseen = design_mixtures(shares=SHARES[num_sources], num_runs=NUM_UNSEEN, seed=seed + 10**7, min_share=2e-4)
    least = least_loss(loss, num_sources=num_sources)
    best, natural = loss(fit.best[None])[0], loss(weights[:1])[0]
    best_run = loss(weights)[runs.losses.argmin()]
    return {
        "rank": rank_correlation(_predict(fit, unseen), loss(unseen)),
        "regret": best / least - 1,
        "best_run_regret": best_run / least - 1,
        "natural_regret": natural / least - 1,
        "holds_loss": fit.loss.low <= best <= fit.loss.high,
        "holds_gain": fit.gain.low <= natural - best <= fit.gain.high,
        "claims": fit.is_better,
        "wrong_claims": fit.is_better and best >= natural,
    }


def _predict(fit: MixtureFit, weights: Floats) -> Floats:
    losses = fit.runs.losses
    scaled = (losses - losses.mean()) / losses.std()
    regression = FORMS[fit.chosen](fit.runs.weights, scaled)
    out: Floats = regression.terms(weights) @ regression.solve(scaled, np.ones(len(losses)))
    return out


def main() -> None:
    """Measure, and print one JSON object per family and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truths", type=int, default=60)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for family in arguments.families.split(","):
            for num_sources, num_runs in SIZES:
                tasks = [(family, num_sources, num_runs, FIRST_SEED + index) for index in range(arguments.truths)]
                print(json.dumps(_summary(tasks[0], pool.map(search_once, tasks, chunksize=1))), flush=True)


def _summary(task: tuple[str, int, int, int], results: list[dict[str, float]]) -> dict[str, object]:
    values = {name: np.array([result[name] for result in results], dtype=float) for name in results[0]}
    return {
        "family": task[0],
        "sources": task[1],
        "runs": task[2],
        "truths": len(results),
        "rank_mean": round(values["rank"].mean(), 3),
        "rank_least": round(values["rank"].min(), 3),
        "rank_below_0.9": int((values["rank"] < 0.9).sum()),
        **{f"{name}_percent": round(100 * values[name].mean(), 2) for name in _REGRETS},
        "regret_greatest_percent": round(100 * values["regret"].max(), 2),
        **{name: round(values[name].mean(), 3) for name in ("holds_loss", "holds_gain", "claims", "wrong_claims")},
    }


if __name__ == "__main__":
    main()
