"""Text in, tokenised corpus out: read and clean, find duplicates, train a tokenizer, encode, write.

Everything is built in a work folder beside the result, which is renamed when complete, so that a folder with the final
name is never partial. Each stage leaves complete pieces in the work folder, from which a killed preparation resumes.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chinchilla_ds.data.cleaning.decontamination import read_contamination
from chinchilla_ds.data.cleaning.rules import CLEANING_VERSION, CleaningConfig
from chinchilla_ds.data.dedup.components import find_duplicates
from chinchilla_ds.data.prepared import INPUTS_NAME, PREPARED_FORMAT_VERSION, PreparedData, is_prepared
from chinchilla_ds.data.preparing.assembly import write
from chinchilla_ds.data.preparing.encode import EncodeTask, encode_segment, read_counts
from chinchilla_ds.data.preparing.held_out import NearTask, find_near, write_keys
from chinchilla_ds.data.preparing.job import Job, run_tasks
from chinchilla_ds.data.preparing.ledger import tell_fates
from chinchilla_ds.data.preparing.read_stage import ReadTask, messages, read_shard_or_problems, read_tasks
from chinchilla_ds.data.preparing.recipe import Recipe, find_sources, vocab_size_of_corpus
from chinchilla_ds.data.preparing.segments import segments_of
from chinchilla_ds.data.preparing.split import FilteredSegment, held_out_threshold, tokenizer_sample
from chinchilla_ds.data.reading.sources import Corpus, Progress, identities, raise_problems
from chinchilla_ds.data.tokenizing.sentencepiece_json import check_exportable
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer, train_tokenizer
from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.files import remove_asides, whole_folder, write_durably
from chinchilla_ds.processes.pool import Workers, num_cores
from chinchilla_ds.structured import read_json

KEY_NAME = "key"


def prepare_recipe(
    recipe: Recipe,
    *,
    folder: Path,
    corpora: tuple[Corpus, ...] | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Return the corpus of `recipe` in `folder`, prepared there unless it is there already.

    The same recipe over the same text gives the same bytes, whatever the number of workers and the order of files. A
    call that was killed is resumed.

    Args:
        recipe: The text and its processing.
        folder: Becomes the prepared folder; the work folder is beside it until then.
        corpora: The result of `find_sources(recipe)`; None calls it.
        num_workers: Number of worker processes; None: one per core available to this process.
        progress: Receives the progress of each stage.

    Raises:
        DataError: the text is missing, unreadable, or too small; all problems are listed. No files are left behind.
        OutputError: `folder` cannot be written, or holds something else. Complete pieces stay in the work folder.
        WorkerError: a worker process was killed. Complete pieces stay in the work folder.
    """
    corpora = find_sources(recipe) if corpora is None else corpora
    key = content_key(corpora, recipe)
    job = Job(
        recipe=recipe,
        corpora=corpora,
        key=key,
        work=folder.parent / f".{folder.name}.work",
        final=folder,
        progress=progress or (lambda stage, share: None),
        workers=Workers(num_workers or num_cores()),
    )
    if not _is_done(job):
        if recipe.tokenizer is not None:
            check_exportable(Tokenizer.load(recipe.tokenizer))  # reported now, not after hours of reading
        _build_in_place(job)
    return PreparedData.load(folder)


def content_key(corpora: Sequence[Corpus], recipe: Recipe) -> str:
    """Return a key of everything that determines the result: files, settings, versions."""
    files = [
        [corpus.name, corpus.text_field, corpus.weight, corpus.max_epochs]
        + [
            (identity, file.kind, file.num_bytes, file.modified_ns)
            for identity, file in zip(identities(corpus.files), corpus.files, strict=True)
        ]
        for corpus in corpora
    ]
    settings = {name: _plain(value) for name, value in vars(recipe).items() if name not in ("sources", "skip_problems")}
    for name in ("tokenizer", "decontaminate"):
        settings[name] = [_stamp(path) for path in _paths(getattr(recipe, name))]
    versions = [version(name) for name in ("sentencepiece", "ftfy", "rensa")]
    content = json.dumps([files, settings, recipe.skip_problems, PREPARED_FORMAT_VERSION, CLEANING_VERSION, versions])
    return hashlib.blake2b(content.encode(errors="surrogateescape"), digest_size=10).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold, the same in every process."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path | tuple) else value


def _paths(value: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return () if value is None else (value,) if isinstance(value, Path) else value


def _stamp(path: Path) -> list[Any]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _is_done(job: Job) -> bool:
    """Return whether the result exists; anything else in its place is an error."""
    if not is_prepared(job.final):
        if job.final.is_dir() and any(job.final.iterdir()):
            raise OutputError(f"{job.final} holds other files; name a new folder")
        return False
    path = job.final / INPUTS_NAME
    inputs = read_json(path, what="the list of inputs", error=DataError) if path.is_file() else None
    if not isinstance(inputs, dict) or inputs.get("key") != job.key:
        raise OutputError(
            f"{job.final} holds data prepared from other text or with other settings; remove it, or name a new folder"
        )
    return True


def _build_in_place(job: Job) -> None:
    """Build in the work folder, then give the result its name; bad input leaves nothing behind."""
    made = [folder for folder in (job.final.parent, *job.final.parent.parents) if not folder.exists()]
    try:
        job.final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(job.work), job.workers:
            if _is_done(job):  # another process was first
                return
            _clear_unless(job.work, key=job.key)
            if not job.result.exists():
                _build(job)
            job.final.mkdir(exist_ok=True)
            job.result.replace(job.final)
        shutil.rmtree(job.work)
    except DataError:
        shutil.rmtree(job.work, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # it holds something, or was never made
                folder.rmdir()
        raise
    except BrokenPipeError:  # not the disk: the reader of the progress has closed the pipe
        raise
    except OSError as error:
        left = f"; complete pieces are kept in {job.work} for the next attempt" if job.work.is_dir() else ""
        raise OutputError(f"cannot write prepared data to {job.final.parent}: {reason(error)}{left}") from None


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Lock the work folder against other processes; the lock is released when the process exits."""
    while True:
        work.mkdir(exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: exclusion is up to the user
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # otherwise another process has removed the folder in the meantime
            if work.is_dir() and os.path.samestat(os.fstat(descriptor), work.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _clear_unless(work: Path, *, key: str) -> None:
    """Empty the work folder unless its files belong to the same result."""
    path = work / KEY_NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != key:
        for entry in work.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_durably(path, key)
    remove_asides(work)


def _build(job: Job) -> None:
    shards = _read(job)
    counts = read_counts([path for folders in shards.values() for path in folders])
    fates = tell_fates(counts, cleaning=job.recipe.cleaning)
    threshold, sources = _hold_out(job, _find_duplicates(job, shards), fates=fates)
    tokenizer = _tokenizer(job, sources, threshold=threshold)
    encoded = _encode(job, sources, tokenizer=tokenizer, threshold=threshold)
    with whole_folder(job.result) as folder:
        write(job, shards=shards, encoded=encoded, threshold=threshold, tokenizer=tokenizer, folder=folder)


def _read(job: Job) -> dict[str, list[Path]]:
    """Read, clean, hash and sign all input; return the shards of each source."""
    recipe = job.recipe
    if recipe.decontaminate:
        read_contamination(recipe.decontaminate)  # raises their problems
    tasks = read_tasks(
        job.corpora,
        folder=job.work / "shards",
        cleaning=recipe.cleaning,
        minhash=recipe.minhash if recipe.dedup else None,
        decontaminate=recipe.decontaminate,
        skip_problems=recipe.skip_problems,
    )
    (job.work / "shards").mkdir(exist_ok=True)
    results = run_tasks(job, read_shard_or_problems, tasks, stage="reading and cleaning", size=_task_bytes)
    problems_of = {task.folder: problems for task, problems in results}
    raise_problems(messages(problem for task in tasks for problem in problems_of[task.folder]))
    shards = {
        corpus.name: [task.folder for task in tasks if task.source == source]
        for source, corpus in enumerate(job.corpora)
    }
    empty = {name: folders for name, folders in shards.items() if not segments_of(folders)}
    raise_problems([_nothing_left(name, folders, cleaning=recipe.cleaning) for name, folders in empty.items()])
    return shards


def _nothing_left(name: str, shards: Sequence[Path], *, cleaning: CleaningConfig) -> str:
    """Return the problem of a source of which no document is left, with the fates of its records."""
    fates = tell_fates(read_counts(shards), cleaning=cleaning)
    strict = "; without `on_error=skip` each is reported with its place" if " skipped (" in fates else ""
    return f"source {name} has no training document: {fates}{strict}"


def _task_bytes(task: ReadTask) -> float:
    return task.num_bytes + 1


def _find_duplicates(job: Job, shards: dict[str, list[Path]]) -> dict[str, list[FilteredSegment]]:
    """Return the segments of each source with the verdicts on their documents."""
    segments = {name: segments_of(folders) for name, folders in shards.items()}
    flat = [path for folders in segments.values() for path in folders]
    verdicts: dict[Path, Path] = {}
    if job.recipe.dedup and flat:
        folders = find_duplicates(
            flat,
            config=job.recipe.minhash,
            work_folder=job.work / "duplicates",
            workers=job.workers,
            progress=lambda stage, share: job.progress(f"finding duplicates: {stage}", share),
        )
        verdicts = dict(zip(flat, folders, strict=True))
    return {
        name: [FilteredSegment(folder=path, verdict=verdicts.get(path)) for path in folders]
        for name, folders in segments.items()
    }


def _hold_out(
    job: Job, sources: dict[str, list[FilteredSegment]], *, fates: str
) -> tuple[int, dict[str, list[FilteredSegment]]]:
    """Return the hash below which documents are held out, and the segments without similar training documents."""
    stage, folder, config = "holding out", job.work / "held_out", job.recipe.minhash
    job.progress(stage, 0.0)
    flat = [segment for segments in sources.values() for segment in segments]
    threshold = held_out_threshold(flat, held_out_fraction=job.recipe.held_out_fraction, fates=fates)
    if not (job.recipe.dedup and config):
        job.progress(stage, 1.0)
        return threshold, sources
    folder.mkdir(exist_ok=True)
    write_keys(flat, threshold=threshold, config=config, folder=folder / "keys")
    tasks = {
        name: [
            NearTask(
                segment=segment,
                threshold=threshold,
                config=config,
                keys=folder / "keys",
                folder=folder / f"{segment.folder.parent.name}-{segment.folder.name}",
            )
            for segment in segments
        ]
        for name, segments in sources.items()
    }
    run_tasks(
        job, find_near, [task for of_source in tasks.values() for task in of_source], stage=stage, size=lambda task: 1.0
    )
    return threshold, {name: [task.result for task in of_source] for name, of_source in tasks.items()}


def _tokenizer(job: Job, sources: dict[str, list[FilteredSegment]], *, threshold: int) -> Path:
    """Train the tokenizer, or copy the given one, and return its path."""
    stage, folder = "training the tokenizer", job.work / "tokenizer"
    job.progress(stage, 0.0)
    if not folder.exists():
        flat = [segment for segments in sources.values() for segment in segments]
        with whole_folder(folder) as aside:
            tokenizer = _make_tokenizer(job, flat, threshold=threshold)
            check_exportable(tokenizer)
            tokenizer.save(aside / tokenizer.saved_as)
    job.progress(stage, 1.0)
    (path,) = folder.iterdir()
    return path


def _make_tokenizer(job: Job, segments: Sequence[FilteredSegment], *, threshold: int) -> Tokenizer:
    if job.recipe.tokenizer is not None:
        return Tokenizer.load(job.recipe.tokenizer, trusted=True)
    num_bytes = sum(int(segment.hashes_and_sizes()[1].sum()) for segment in segments)
    vocab_size = job.recipe.vocab_size or vocab_size_of_corpus(num_bytes=num_bytes)
    return train_tokenizer(tokenizer_sample(segments, threshold=threshold, seed=job.recipe.seed), vocab_size=vocab_size)


def _encode(
    job: Job, sources: dict[str, list[FilteredSegment]], *, tokenizer: Path, threshold: int
) -> dict[str, list[Path]]:
    """Encode all segments; return the encoded ones of each source."""
    (job.work / "encoded").mkdir(exist_ok=True)
    tasks: dict[str, list[EncodeTask]] = {name: [] for name in sources}
    for name, segments in sources.items():
        for segment in segments:
            folder = job.work / "encoded" / f"{segment.folder.parent.name}-{segment.folder.name}"
            task = EncodeTask(segment=segment, threshold=threshold, tokenizer=tokenizer, folder=folder)
            tasks[name].append(task)
    flat = [task for of_source in tasks.values() for task in of_source]
    run_tasks(job, encode_segment, flat, stage="encoding", size=lambda task: 1.0)
    return {name: [task.folder for task in of_source] for name, of_source in tasks.items()}
