"""Signatures: text to normalised shingles, to MinHash values, to one key per band."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chinchilla_ds.data.dedup.bands import MinHashConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def band_keys(texts: Sequence[str], /, *, config: MinHashConfig) -> "NDArray[np.uint64]":
    """Return the band keys of each text: [texts, bands]; two texts are near duplicates where any key is equal.

    The result of a text depends on nothing but the text and `config`: not on the batch, the process or the platform.
    A text with fewer units than one shingle needs has one shingle, all of it; one with no unit at all (punctuation
    only) has itself as its one shingle, before normalisation. So short texts are duplicates only where they are equal.
    """
    raise NotImplementedError
