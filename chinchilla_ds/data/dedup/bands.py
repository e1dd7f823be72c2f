"""Bands and rows of MinHash-LSH: which pairs are found, and how to choose them for a threshold."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from chinchilla_ds.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTEGRATION_STEPS = 1000
"""Midpoints per integral over the Jaccard index."""


class Unit(StrEnum):
    """What a shingle is made of."""

    CHARACTER = "character"
    WORD = "word"


@dataclass(frozen=True, kw_only=True)
class MinHashConfig:
    """How near duplicates are found.

    Raises:
        ConfigError: a size below 1, or more bands x rows than permutations.
    """

    unit: Unit
    """Shingles of characters, or of words; each unit has its own normalisation (see `normalise`)."""
    shingle_size: int
    """Units per shingle."""
    num_permutations: int
    """Hash functions of a signature; the bands take the first bands x rows, the check of a pair takes all."""
    bands: int
    """Two documents of which any one band is equal are a candidate pair."""
    rows: int
    """Hash functions per band."""
    min_similarity: float = 0.65
    """Share of all hash values that must agree in a candidate pair to make it one of near duplicates; 0: no check."""
    seed: int = 42
    """Chooses the hash functions."""

    def __post_init__(self) -> None:
        sizes = ("shingle_size", "num_permutations", "bands", "rows")
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least 1" for name in sizes if getattr(self, name) < 1
        ]
        if not problems and self.bands * self.rows > self.num_permutations:
            problems.append(
                f"bands ({self.bands}) x rows ({self.rows}) = {self.bands * self.rows} is more than num_permutations"
                f" ({self.num_permutations}); {self.num_permutations // self.rows} bands of {self.rows} rows fit"
            )
        if not 0 <= self.min_similarity <= 1:
            problems.append(f"min_similarity is {self.min_similarity:g}; it must lie between 0 and 1")
        if not 0 <= self.seed < 2**64:
            problems.append(f"seed is {self.seed}; it must lie between 0 and 2^64 - 1")
        if problems:
            raise ConfigError(problems)

    @property
    def num_columns(self) -> int:
        """Columns of what `band_keys` returns: the bands, then a byte per permutation, eight to a column."""
        return self.bands + -(-self.num_permutations // 8)

    @property
    def min_agreeing(self) -> int:
        """Hash values that must agree in a candidate pair."""
        return math.ceil(self.min_similarity * self.num_permutations - 1e-9)

    def detection_probability(self, jaccard: float, /) -> float:
        """Return the probability that a pair of this Jaccard index shares a band, 1 - (1 - J^r)^b.

        Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2.
        """
        return float(1 - (1 - jaccard**self.rows) ** self.bands)

    def duplicate_probability(self, jaccard: float, /) -> float:
        """Return the probability that such a pair shares a band and passes the check of `min_similarity` as well.

        For hash values that agree independently, each with probability J: the chance of enough agreeing ones, less the
        chance of enough without one whole band among them.
        """
        import numpy as np

        def agreeing(number: int) -> "NDArray[np.float64]":
            chances = [math.comb(number, k) * jaccard**k * (1 - jaccard) ** (number - k) for k in range(number + 1)]
            return np.array(chances)

        broken_band = agreeing(self.rows)
        broken_band[-1] = 0
        no_band = agreeing(self.num_permutations - self.bands * self.rows)
        for _ in range(self.bands):
            no_band = np.convolve(no_band, broken_band)
        every = agreeing(self.num_permutations)
        return float(np.sum(every[self.min_agreeing :]) - np.sum(no_band[self.min_agreeing :]))


PRESETS = {
    "slimpajama": MinHashConfig(unit=Unit.CHARACTER, shingle_size=13, num_permutations=128, bands=9, rows=13),
    "fineweb": MinHashConfig(unit=Unit.WORD, shingle_size=5, num_permutations=112, bands=14, rows=8),
}
"""SlimPajama (Soboleva et al. 2023; Cerebras modelzoo, slimpajama/dedup); FineWeb (arXiv:2406.17557, section 3.4)."""


def choose_bands(*, num_permutations: int, threshold: float) -> tuple[int, int]:
    """Return the (bands, rows) whose curve is nearest to a step at `threshold`.

    Among all bands x rows <= num_permutations the sum of two areas is smallest: below the threshold that under the
    curve 1 - (1 - J^r)^b (false positives), above it that over the curve (false negatives), both weighed equally.
    Of equal sums the one with fewer rows, then fewer bands, wins.

    Args:
        num_permutations: Hash functions of a signature.
        threshold: Jaccard index from which a pair counts as a duplicate, between 0 and 1.

    Raises:
        ConfigError: no permutation, or a threshold that is not between 0 and 1.

    Source: the criterion of Zhu et al. 2016 (LSH Ensemble, VLDB), section 5.2, that datasketch's MinHashLSH uses.
    """
    import numpy as np

    problems = []
    if num_permutations < 1:
        problems.append(f"num_permutations is {num_permutations}; it must be at least 1")
    if not 0 < threshold < 1:
        problems.append(f"threshold is {threshold:g}; it must lie between 0 and 1, 0.8 for example")
    if problems:
        raise ConfigError(problems)
    middles = (np.arange(INTEGRATION_STEPS) + 0.5) / INTEGRATION_STEPS
    low, high = middles * threshold, threshold + middles * (1 - threshold)
    best = (float("inf"), 1, 1)
    for rows in range(1, num_permutations + 1):
        missed_low, missed_high = 1 - low**rows, 1 - high**rows
        for bands in range(1, num_permutations // rows + 1):
            false_positive = threshold * float(np.mean(1 - missed_low**bands))
            false_negative = (1 - threshold) * float(np.mean(missed_high**bands))
            best = min(best, (false_positive + false_negative, rows, bands))
    return best[2], best[1]
