"""A known truth for mixture searches: power laws of each domain's own text and of what carries over from the others.

It has the form of none of the regressions.
"""

from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats

NOISE = 0.005
"""Relative standard deviation of a small run's loss over seeds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """L(w) = sum_j v_j (E_j + A_j (4 (T w)_j)^-alpha_j) over evaluation domains j."""

    irreducible: Floats
    coefficient: Floats
    exponent: Floats
    transfer: Floats
    """[domain, source]"""
    share: Floats
    """Of each domain in the evaluation, sums to 1."""

    def loss(self, weights: Floats) -> Floats:
        """Return the losses [m] of mixtures [m, k], without noise."""
        domains = self.irreducible + self.coefficient * (4 * weights @ self.transfer.T) ** -self.exponent
        return domains @ self.share

    def noisy(self, weights: Floats, *, seed: int) -> Floats:
        """Return the losses of small runs."""
        draws = np.random.default_rng(seed).normal(size=len(weights))
        return self.loss(weights) * (1 + NOISE * draws)

    def least(self, *, upper: Floats | None = None) -> float:
        """Return the loss of the best mixture, by exchange between all pairs of sources in ever smaller portions.

        The loss is convex in w, so that a point from which no exchange helps is the best up to the last portion.
        """
        k = self.transfer.shape[1]
        best = np.full(k, 1 / k) if upper is None else upper / upper.sum()
        ceiling = np.ones(k) if upper is None else upper
        moves = np.array([np.eye(k)[i] - np.eye(k)[j] for i in range(k) for j in range(k) if i != j])
        portion = 0.25
        while portion > 1e-5:
            trials = best + portion * moves
            trials = trials[np.all((trials >= 0) & (trials <= ceiling), axis=1)]
            losses = self.loss(trials) if len(trials) else np.array([np.inf])
            if losses.min() < self.loss(best[None])[0] - 1e-12:
                best = trials[losses.argmin()]
            else:
                portion /= 2
        return float(self.loss(best[None])[0])


def random_truth(*, num_sources: int, seed: int, more_domains: int = 0) -> Truth:
    """Return a truth; domains beyond the sources are never trained on directly."""
    generator = np.random.default_rng(seed)
    num = num_sources + more_domains
    transfer = generator.uniform(0.01, 0.25, (num, num_sources))
    transfer[np.arange(num), np.arange(num) % num_sources] = 1
    return Truth(
        irreducible=generator.uniform(1.2, 2.5, num),
        coefficient=generator.uniform(0.8, 3, num),
        exponent=generator.uniform(0.2, 0.5, num),
        transfer=transfer,
        share=generator.dirichlet(np.full(num, 2.0)),
    )
