"""Which document of a component is kept: the one with the smallest content hash; of its copies, the first source's.

Each shard proposes its best document of every component (a candidate), tasks over ranges of components choose among
them and write the answers, and each shard reads the answers to its own candidates.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.candidates import CONTENT_HASH_NAME, SOURCE_NAME, TASK_RECORDS, DedupJob
from chinchilla_ds.data.dedup.exchange import Stages, key_range, read_range, write_array
from chinchilla_ds.data.dedup.shingles import mix
from chinchilla_ds.data.dedup.union import read_labels

KEEP_NAME = "keep.npy"
"""In a verdict folder, bool [documents]."""
DUPLICATE_OF_NAME = "duplicate_of.npy"
"""In a verdict folder, shaped like the content hashes: the hash of the kept document; a kept one has its own."""

CANDIDATE = np.dtype([(name, "<u8") for name in ("key", "root", "hash", "hash_low", "source", "ordinal")])
"""A shard's best document of a component; the key is a scrambling of the component's first ordinal."""
ANSWER = np.dtype([(name, "<u8") for name in ("key", "root", "hash", "hash_low", "ordinal")])
"""The document kept from a component; the key is the ordinal of the candidate that it answers."""

_ORDER = ("ordinal", "source", "hash_low", "hash", "root", "key")
"""For lexsort, whose last key is the primary one; ordinals decide only between copies from the same source."""


def verdict_folders(job: DedupJob, /) -> tuple[Path, ...]:
    """Return where each shard's verdicts go."""
    return tuple(job.folder / "verdicts" / f"{index:06d}" for index in range(len(job.shards)))


def write_verdicts(job: DedupJob, /, *, labels: Path, stages: Stages) -> None:
    """Write KEEP_NAME and DUPLICATE_OF_NAME of every shard.

    Args:
        job: the deduplication.
        labels: the file that `union.join` wrote.
        stages: runs the tasks.
    """
    runs = [job.folder / "candidates" / path.name for path in job.runs]
    stages.run("candidates", partial(_propose, job=job, labels=labels, runs=runs), runs)
    number = max(1, -(-sum(np.load(run, mmap_mode="r").shape[0] for run in runs) // TASK_RECORDS))
    answers = [job.folder / "answers" / f"{index:06d}.npy" for index in range(number)]
    stages.run("choices", partial(_choose, runs=runs, answers=answers), answers)
    outputs = [folder / KEEP_NAME for folder in verdict_folders(job)]
    stages.run("verdicts", partial(_decide, job=job, labels=labels, answers=answers), outputs)


def _members(shard: int, *, job: DedupJob, labels: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which documents of a shard have duplicates, by place, and their components: [members], [members]."""
    first, last = int(job.offsets[shard]), int(job.offsets[shard + 1])
    components = read_labels(labels, first=first, last=last, num_documents=int(job.offsets[-1]))
    places = np.flatnonzero(components)
    return places, components[places] - 1


def _propose(shard: int, *, job: DedupJob, labels: Path, runs: list[Path]) -> None:
    places, roots = _members(shard, job=job, labels=labels)
    records = np.empty(len(places), dtype=CANDIDATE)
    records["root"] = roots
    records["key"] = mix(records["root"].copy())
    records["hash"], records["hash_low"] = job.content_hashes(shard)[places].T
    records["source"] = np.load(job.shards[shard] / SOURCE_NAME)[places]
    records["ordinal"] = places + int(job.offsets[shard])
    write_array(runs[shard], _best(records)[0])


def _best(records: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.int64]]:
    """Return the first of each component, all records in order, and how many each component has."""
    ordered = records[np.lexsort([records[name] for name in _ORDER])]
    first = np.flatnonzero(np.diff(ordered["root"], prepend=~ordered["root"][:1]))
    return ordered[first], ordered, np.diff(first, append=len(ordered))


def _choose(index: int, *, runs: list[Path], answers: list[Path]) -> None:
    low, high = key_range(index, number=len(answers))
    best, candidates, counts = _best(read_range(runs, low=low, high=high))
    choices = np.empty(len(candidates), dtype=ANSWER)
    choices["key"] = candidates["ordinal"]
    for name in ("root", "hash", "hash_low", "ordinal"):
        choices[name] = np.repeat(best[name], counts)
    write_array(answers[index], choices[np.argsort(choices["key"])])


def _decide(shard: int, *, job: DedupJob, labels: Path, answers: list[Path]) -> None:
    places, roots = _members(shard, job=job, labels=labels)
    choices = read_range(answers, low=int(job.offsets[shard]), high=int(job.offsets[shard + 1]))
    choices = choices[np.argsort(choices["root"])]
    winners = choices[np.searchsorted(choices["root"], roots.astype(np.uint64))]
    keep = np.ones(job.num_documents[shard], dtype=bool)
    keep[places] = winners["ordinal"] == places + int(job.offsets[shard])
    duplicate_of = np.load(job.shards[shard] / CONTENT_HASH_NAME)
    duplicate_of[places] = (
        winners["hash"] if duplicate_of.ndim == 1 else np.stack([winners["hash"], winners["hash_low"]], axis=1)
    )
    folder = verdict_folders(job)[shard]
    write_array(folder / DUPLICATE_OF_NAME, duplicate_of)
    write_array(folder / KEEP_NAME, keep)  # written last: if it exists, so does the other
