"""Which documents to keep: exact and near duplicates found on disk, in memory that does not grow with the corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.data.dedup.bands import MinHashConfig

CONTENT_HASH_NAME = "content_hash.npy"
"""In a shard's folder, uint64 [documents] or [documents, 2]: the hash of each cleaned text."""
SOURCE_NAME = "source.npy"
"""In a shard's folder, unsigned integers [documents]: the place of each document's source among the sorted names."""
BAND_KEYS_NAME = "band_keys.npy"
"""In a shard's folder, uint64 [documents, bands]; not read where only exact duplicates are looked for."""
KEEP_NAME = "keep.npy"
"""In a verdict folder, bool [documents]."""
DUPLICATE_OF_NAME = "duplicate_of.npy"
"""In a verdict folder, of the shape of the content hashes: that of the kept document, its own for a kept one."""

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What was found."""

    verdicts: tuple[Path, ...]
    """A folder per shard, in the order of the shards: KEEP_NAME and DUPLICATE_OF_NAME."""
    num_documents: int
    num_kept: int
    num_exact: int
    """Dropped documents whose content hash is that of the kept one."""
    num_near: int
    """The other dropped documents."""


def find_duplicates(
    shards: Sequence[Path],
    /,
    *,
    config: MinHashConfig | None,
    work_folder: Path,
    num_workers: int,
    progress: Progress | None = None,
) -> Duplicates:
    """Decide for each document whether it is kept.

    Args:
        shards: One folder each, with CONTENT_HASH_NAME, SOURCE_NAME and BAND_KEYS_NAME.
        config: Of the band keys; None finds exact duplicates only.
        work_folder: Receives the verdicts and all that leads to them; a rerun after a kill goes on from what is there.
        num_workers: Processes.
        progress: Told how far each stage is.
    """
    raise NotImplementedError
