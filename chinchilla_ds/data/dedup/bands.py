"""Bands and rows of MinHash-LSH: which pairs are compared."""

import math
from dataclasses import dataclass
from enum import StrEnum

from chinchilla_ds.errors import ConfigError


class Unit(StrEnum):
    """The unit of a shingle."""

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
    """Two documents that share any band are a candidate pair."""
    rows: int
    """Hash functions per band."""
    min_similarity: float = 0.65
    """Share of all hash values that must agree for a candidate pair to be near duplicates; 0: no check."""
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
        """Columns of the result of `band_keys`: the bands, then a byte per permutation, eight to a column."""
        return self.bands + -(-self.num_permutations // 8)

    @property
    def min_agreeing(self) -> int:
        """Hash values that must agree in a candidate pair."""
        return math.ceil(self.min_similarity * self.num_permutations - 1e-9)


PRESETS = {
    "slimpajama": MinHashConfig(unit=Unit.CHARACTER, shingle_size=13, num_permutations=128, bands=9, rows=13),
    "fineweb": MinHashConfig(unit=Unit.WORD, shingle_size=5, num_permutations=112, bands=14, rows=8),
}
"""SlimPajama (Soboleva et al. 2023; Cerebras modelzoo, slimpajama/dedup); FineWeb (arXiv:2406.17557, section 3.4)."""
