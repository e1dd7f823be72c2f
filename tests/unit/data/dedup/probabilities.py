"""How probable it is that a pair of a known Jaccard index is found; docs/deduplication.md has the table."""

import math

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import MinHashConfig


def detection_probability(config: MinHashConfig, jaccard: float) -> float:
    """Return the probability that a pair shares a band, 1 - (1 - J^r)^b.

    Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    return float(1 - (1 - jaccard**config.rows) ** config.bands)


def duplicate_probability(config: MinHashConfig, jaccard: float) -> float:
    """Return the probability that such a pair shares a band and passes the check of `min_similarity` as well.

    For hash values that agree independently, each with probability J: the chance of enough agreeing ones, less the
    chance of enough without one whole band among them.
    """

    def agreeing(number: int) -> NDArray[np.float64]:
        chances = [math.comb(number, k) * jaccard**k * (1 - jaccard) ** (number - k) for k in range(number + 1)]
        return np.array(chances)

    broken_band = agreeing(config.rows)
    broken_band[-1] = 0
    no_band = agreeing(config.num_permutations - config.bands * config.rows)
    for _ in range(config.bands):
        no_band = np.convolve(no_band, broken_band)
    every = agreeing(config.num_permutations)
    return float(np.sum(every[config.min_agreeing :]) - np.sum(no_band[config.min_agreeing :]))
