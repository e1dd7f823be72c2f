"""A worker's step: read, clean, hash and sign one shard of the input."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from chinchilla_ds.data.cleaning.decontamination import Contamination, read_contamination
from chinchilla_ds.data.cleaning.rules import Cleaner, CleaningConfig
from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.preparing.segments import SegmentWriter
from chinchilla_ds.data.reading.parts import Mended, Part, Problem
from chinchilla_ds.data.reading.readers import parts_of, read_part
from chinchilla_ds.data.reading.sources import MAX_PROBLEMS, Corpus
from chinchilla_ds.errors import DataError
from chinchilla_ds.files import whole_folder

COUNTS_NAME = "counts.json"
EMPTY = "empty"
"""The rule that drops documents without text."""
CONTAMINATED = "benchmark_overlap"
"""The rule that drops documents which share text with a benchmark."""
MENDED = "half_surrogates"
"""The name under which documents are counted in which halves of surrogate pairs became U+FFFD."""
UNCHECKED = "unchecked"
"""The count of kept documents with too few words to compare with benchmarks."""

_MIN_PART_BYTES = 4 * 2**20
_MAX_PART_BYTES = 64 * 2**20
_PARTS = 256


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """One shard: ranges of the files of one source, and what to do with their documents."""

    folder: Path
    """Where the shard goes; if it exists, it is complete."""
    parts: tuple[Part, ...]
    source: int
    """Index of the source in the sorted names."""
    cleaning: CleaningConfig
    minhash: MinHashConfig | None
    decontaminate: tuple[Path, ...]
    """Benchmark files; documents that share text with them are dropped."""
    skip_problems: bool
    segment_bytes: int

    @property
    def num_bytes(self) -> int:
        """Approximate size on disk of the parts, bytes."""
        return sum(part.num_bytes for part in self.parts)


def read_tasks(
    corpora: Sequence[Corpus],
    /,
    *,
    folder: Path,
    cleaning: CleaningConfig,
    minhash: MinHashConfig | None,
    decontaminate: tuple[Path, ...],
    skip_problems: bool,
) -> list[ReadTask]:
    """Split the input into shards, which depend only on the input.

    Args:
        corpora: the sources, with their files.
        folder: receives the shards.
        cleaning: the cleaning rules.
        minhash: how near duplicates are found; None: only exact ones.
        decontaminate: benchmark files.
        skip_problems: whether unreadable records are skipped and counted.

    Raises:
        DataError: a file that cannot be opened, unless problems are skipped.
    """
    total = sum(corpus.num_bytes for corpus in corpora)
    part_bytes = min(_MAX_PART_BYTES, max(_MIN_PART_BYTES, total // _PARTS))
    tasks: list[ReadTask] = []
    problems: list[str] = []
    for source, corpus in enumerate(corpora):
        parts = list(_parts(corpus, part_bytes=part_bytes, problems=problems, skip_problems=skip_problems))
        for group in _groups(parts, part_bytes=part_bytes):
            task = ReadTask(
                folder=folder / f"{len(tasks):06d}",
                parts=group,
                source=source,
                cleaning=cleaning,
                minhash=minhash,
                decontaminate=decontaminate,
                skip_problems=skip_problems,
                segment_bytes=2 * part_bytes,
            )
            tasks.append(task)
    if problems:
        raise DataError(problems)
    return tasks


def _parts(corpus: Corpus, *, part_bytes: int, problems: list[str], skip_problems: bool) -> Iterator[Part]:
    for file in corpus.files:
        try:
            yield from parts_of(file, text_field=corpus.text_field, part_bytes=part_bytes)
        except DataError as error:
            if skip_problems:  # the worker meets the same problem, and counts it
                yield Part(file=file, text_field=corpus.text_field, num_bytes=file.num_bytes)
            else:
                problems.extend(error.problems)


def _groups(parts: Sequence[Part], *, part_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Yield groups of neighbouring parts of about `part_bytes`."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.num_bytes > part_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(part)
        size += part.num_bytes
    if group:
        yield tuple(group)


def read_shard(task: ReadTask, /) -> list[Problem]:
    """Read, clean, hash and sign; write the complete shard, or return the problems that prevent it."""
    if task.folder.exists():
        return []
    problems: list[Problem] = []
    with whole_folder(task.folder) as folder:
        counts = Counter[str]()
        writer = SegmentWriter(
            folder=folder, source=task.source, minhash=task.minhash, segment_bytes=task.segment_bytes
        )
        for part in task.parts:
            _read(part, task=task, writer=writer, counts=counts, problems=problems)
        writer.flush()
        (folder / COUNTS_NAME).write_text(json.dumps(dict(sorted(counts.items()))), encoding="utf-8")
        if problems:
            raise _ShardError(problems)
    return problems


class _ShardError(Exception):
    """Problems of one shard; its folder is removed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        super().__init__()


def read_shard_or_problems(task: ReadTask, /) -> list[Problem]:
    """Run `read_shard` and return its problems, so that those of all shards can be reported together."""
    try:
        return read_shard(task)
    except _ShardError as error:
        return list(error.problems)


def messages(problems: Iterable[Problem], /) -> list[str]:
    """Return the problems' messages; of several about a whole file, such as its encoding, only the first."""
    seen: set[str] = set()
    texts = []
    for problem in problems:
        if problem.of_file is None or problem.of_file not in seen:
            texts.append(problem.message)
        if problem.of_file is not None:
            seen.add(problem.of_file)
    return texts


@lru_cache(maxsize=1)
def _contamination(paths: tuple[Path, ...]) -> Contamination:
    return read_contamination(paths)


@lru_cache(maxsize=1)
def _cleaner(config: CleaningConfig) -> Cleaner:
    return Cleaner(config)


def _read(part: Part, *, task: ReadTask, writer: SegmentWriter, counts: Counter[str], problems: list[Problem]) -> None:
    cleaner = _cleaner(task.cleaning)
    benchmarks = _contamination(task.decontaminate) if task.decontaminate else None
    for document in read_part(part):
        if isinstance(document, Problem):
            if not (document.is_skipped or task.skip_problems):
                problems.append(document)
                if len(problems) > MAX_PROBLEMS or document.of_file is not None:
                    return
                continue
            counts["skipped_files" if document.is_skipped else "documents_in"] += 1
            if not document.is_skipped:
                counts[f"skipped/{document.kind}"] += 1
        else:
            if isinstance(document, Mended):
                counts[f"changed/{MENDED}"] += 1
            _clean(document, cleaner=cleaner, benchmarks=benchmarks, writer=writer, counts=counts)


def _clean(
    document: bytes,
    *,
    cleaner: Cleaner,
    benchmarks: Contamination | None,
    writer: SegmentWriter,
    counts: Counter[str],
) -> None:
    counts["documents_in"] += 1
    counts["bytes_in"] += len(document)
    if not document:
        counts[f"dropped/{EMPTY}/documents"] += 1
        return
    cleaned = cleaner.clean(document.decode())
    overlap = benchmarks.overlap(cleaned.text) if benchmarks and cleaned.text else None
    if not cleaned.text or (overlap and overlap.runs):
        rule = cleaned.dropped_by or (CONTAMINATED if cleaned.text else EMPTY)
        counts[f"dropped/{rule}/documents"] += 1
        counts[f"dropped/{rule}/bytes"] += len(document)
        return
    if overlap and overlap.is_too_short:
        counts[UNCHECKED] += 1
    for changed in cleaned.changed_by:
        counts[f"changed/{changed}"] += 1
    content = cleaned.text.encode()
    counts["edited_bytes"] += len(document) - len(content)
    writer.add(cleaned.text, content)
