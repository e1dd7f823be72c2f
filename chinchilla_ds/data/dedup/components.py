"""Which documents to keep: finds exact and near duplicates on disk; memory does not grow with the corpus."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.dedup.candidates import (
    BAND_KEYS_NAME,
    CONTENT_HASH_NAME,
    SOURCE_NAME,
    TASK_RECORDS,
    DedupJob,
    match_keys,
    sort_keys,
)
from chinchilla_ds.data.dedup.exchange import Progress, Stages
from chinchilla_ds.data.dedup.union import join
from chinchilla_ds.data.dedup.verdicts import DUPLICATE_OF_NAME, KEEP_NAME, verdict_folders, write_verdicts
from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.files import remove_asides, write_durably
from chinchilla_ds.processes.pool import Workers

__all__ = [
    "find_duplicates",
    "CONTENT_HASH_NAME",
    "SOURCE_NAME",
    "BAND_KEYS_NAME",
    "KEEP_NAME",
    "DUPLICATE_OF_NAME",
]

FORMAT_VERSION = 1
"""Version of the files in the work folder; those of another version are not reused."""
MANIFEST_NAME = "manifest.json"
"""File in the work folder that records the inputs of the other files."""
LABELS_NAME = "labels.bin"
SCRATCH_NAMES = ("runs", "edges", "candidates", "answers")


def find_duplicates(
    shards: Sequence[Path],
    /,
    *,
    config: MinHashConfig | None,
    work_folder: Path,
    workers: Workers,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Decide for each document whether it is kept; return the folders of the verdicts, in the order of the shards.

    Documents that share a band key and pass the check of `config.min_similarity` are joined; of each connected
    component the document with the smallest content hash is kept; of its copies, the one from the first source. So the
    content that is kept depends neither on the order of files and documents nor on shards and workers.

    Args:
        shards: One folder each, with CONTENT_HASH_NAME, SOURCE_NAME and BAND_KEYS_NAME.
        config: Configuration of the band keys; None finds only exact copies.
        work_folder: Receives the verdicts and the intermediate files, about 25 bytes per document and band. After
            a kill, a rerun on the same inputs resumes; on other inputs it starts from scratch.
        workers: The worker pool.
        progress: Receives the progress of each stage.

    Raises:
        DataError: a shard's files are missing, damaged, or do not match each other or `config`; all are listed.
        OutputError: the work folder cannot be written.
        WorkerError: a worker process was killed.
    """
    job = DedupJob(shards=tuple(shards), num_documents=_check(shards, config=config), config=config, folder=work_folder)
    _claim(job)
    if not all((folder / KEEP_NAME).exists() for folder in verdict_folders(job)):
        stages = Stages(workers=workers, progress=progress or (lambda stage, share: None))
        labels = work_folder / LABELS_NAME
        if not labels.exists():
            stages.run("sort", partial(sort_keys, job=job), job.runs)
            stages.run("match", partial(match_keys, job=job), job.edges)
            join(job.edges, num_documents=int(job.offsets[-1]), output=labels)
        write_verdicts(job, labels=labels, stages=stages)
    _remove(work_folder, names=SCRATCH_NAMES)
    return verdict_folders(job)


def _check(shards: Sequence[Path], *, config: MinHashConfig | None) -> tuple[int, ...]:
    """Return the documents per shard.

    Raises:
        DataError: see `find_duplicates`.
    """
    problems: list[str] = []
    counts = [_check_shard(shard, config=config, problems=problems) for shard in shards]
    if problems:
        raise DataError(problems)
    return tuple(counts)


def _check_shard(shard: Path, *, config: MinHashConfig | None, problems: list[str]) -> int:
    """Return the documents of one shard, and add its problems to `problems`."""
    shapes: dict[str, tuple[int, int]] = {}
    for name in _input_names(config):
        try:
            array = np.load(shard / name, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            text = reason(error) if isinstance(error, OSError) else str(error)
            problems.append(f"{shard / name} cannot be read: {text}")
            return 0
        if array.dtype.kind != "u" or array.ndim == 0:
            content = f"{array.dtype} {array.shape}"
            problems.append(f"{shard / name} holds {content}; rows of unsigned integers are required")
            return 0
        shapes[name] = (*array.shape, 1)[:2]
    number = shapes[CONTENT_HASH_NAME][0]
    problems += [
        f"{shard / name} holds {shape[0]} documents, but {CONTENT_HASH_NAME} beside it holds {number}"
        for name, shape in shapes.items()
        if shape[0] != number
    ]
    if config is not None and shapes[BAND_KEYS_NAME][1] != config.num_columns:
        columns = f"{shapes[BAND_KEYS_NAME][1]} columns, but these settings give {config.num_columns}"
        problems.append(f"{shard / BAND_KEYS_NAME} has {columns}: it was made with other settings")
    return number


def _input_names(config: MinHashConfig | None) -> tuple[str, ...]:
    return (CONTENT_HASH_NAME, SOURCE_NAME) + (() if config is None else (BAND_KEYS_NAME,))


def _claim(job: DedupJob) -> None:
    """Claim the work folder for these inputs: files made from others are removed.

    Raises:
        OutputError: it cannot be written.
    """
    path = job.folder / MANIFEST_NAME
    manifest = _manifest(job)
    if path.exists() and path.read_text(encoding="utf-8") == manifest:
        return
    try:
        path.unlink(missing_ok=True)
        _remove(job.folder, names=(*SCRATCH_NAMES, "verdicts"))
        job.folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, manifest)
    except OSError as error:
        raise OutputError(f"cannot write {job.folder}: {reason(error)}") from error


def _remove(folder: Path, *, names: Sequence[str]) -> None:
    (folder / LABELS_NAME).unlink(missing_ok=True)
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_asides(folder)


def _manifest(job: DedupJob) -> str:
    inputs = [
        {
            "shard": shard.name,
            "documents": number,
            "blake2b": {name: _digest(shard / name) for name in _input_names(job.config)},
        }
        for shard, number in zip(job.shards, job.num_documents, strict=True)
    ]
    settings = None if job.config is None else dataclasses.asdict(job.config)
    made_by = {"format": FORMAT_VERSION, "rensa": version("rensa"), "task_records": TASK_RECORDS}
    return json.dumps({**made_by, "config": settings, "inputs": inputs}, indent=1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
