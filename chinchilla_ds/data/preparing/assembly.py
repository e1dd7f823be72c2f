"""The end of a preparation: tokens merged into datasets, the ledger, the manifest."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinchilla_ds.data.cleaning.decontamination import read_contamination
from chinchilla_ds.data.cleaning.rules import CleaningConfig
from chinchilla_ds.data.digests import digest_files, names_of
from chinchilla_ds.data.prepared import (
    HELD_OUT_ORIGINS_NAME,
    INPUTS_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    PreparedData,
    PreparedSource,
    train_prefix,
)
from chinchilla_ds.data.preparing.encode import (
    Merged,
    MergeTask,
    hash_of_text,
    merge,
    origins,
    read_counts,
    unigram_loss,
)
from chinchilla_ds.data.preparing.job import Job, run_tasks
from chinchilla_ds.data.preparing.ledger import (
    BenchmarkLedger,
    Ledger,
    SourceLedger,
    make_ledger,
    source_ledger,
    tell_fates,
)
from chinchilla_ds.data.preparing.recipe import Recipe
from chinchilla_ds.data.reading.sources import inputs_of
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import DataError


def write(
    job: Job,
    *,
    shards: dict[str, list[Path]],
    encoded: dict[str, list[Path]],
    threshold: int,
    tokenizer: Path,
    folder: Path,
) -> None:
    """Write the datasets, tokenizer, ledger and manifest.

    Args:
        job: the preparation.
        shards: shards of each source.
        encoded: segments of tokens of each source.
        threshold: documents with a lower content hash are held out.
        tokenizer: the tokenizer's file or folder.
        folder: receives the result.
    """
    import numpy as np

    counts = {name: read_counts(shards[name]) + read_counts(encoded[name]) for name in shards}
    _check_sources(counts, cleaning=job.recipe.cleaning)
    loaded = Tokenizer.load(tokenizer, trusted=True)
    everything = tuple(path for segments in encoded.values() for path in segments)
    parts = [(folder / "held_out", everything, 0, threshold)]
    parts += [
        (train_prefix(folder, name=name), tuple(segments), threshold, 2**64) for name, segments in encoded.items()
    ]
    tasks = [
        MergeTask(segments=segments, low=low, high=high, prefix=prefix, vocab_size=loaded.vocab_size)
        for prefix, segments, low, high in parts
    ]
    merged = {
        task.prefix: dataset for task, dataset in run_tasks(job, merge, tasks, stage="writing", size=lambda task: 1.0)
    }
    held_out = merged.pop(folder / "held_out")
    train = {name: merged[train_prefix(folder, name=name)] for name in encoded}
    assert list(encoded) == sorted(encoded), "sources come in the order of their names"
    np.save(folder / HELD_OUT_ORIGINS_NAME, origins(list(encoded.values()), below=threshold))
    sources = [source_ledger(name, counts=counts[name], tokens=train[name].num_tokens) for name in sorted(train)]
    ledger = make_ledger(sources, held_out_tokens=held_out.num_tokens, benchmarks=_benchmarks(job.recipe))
    for source in sources:
        assert source.train.documents == train[source.name].num_documents, "the index holds what the ledger says"
    skipped_files = sum(count["skipped_files"] for count in counts.values())
    prepared = _prepared(
        job, folder, ledger=ledger, train=train, held_out=held_out, tokenizer=loaded, skipped_files=skipped_files
    )
    copy = shutil.copytree if tokenizer.is_dir() else shutil.copyfile
    copy(tokenizer, folder / tokenizer.name)
    (folder / LEDGER_NAME).write_text(ledger.to_json(), encoding="utf-8")
    datasets = [f"{prefix.name}{suffix}" for prefix, *_ in parts for suffix in (".bin", ".idx")]
    named = [*datasets, HELD_OUT_ORIGINS_NAME, LEDGER_NAME, *names_of(folder / tokenizer.name)]
    held_out_hash = hash_of_text(everything, below=threshold)
    prepared = dataclasses.replace(prepared, files=digest_files(folder, named), held_out_hash=held_out_hash)
    (folder / INPUTS_NAME).write_text(_inputs(job), encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(prepared.to_json(), encoding="utf-8")


def _benchmarks(recipe: Recipe) -> BenchmarkLedger | None:
    if not recipe.decontaminate:
        return None
    benchmarks = read_contamination(recipe.decontaminate)
    return BenchmarkLedger(texts=benchmarks.num_texts, too_short=benchmarks.num_short, words=benchmarks.n)


def _check_sources(counts: dict[str, Any], *, cleaning: CleaningConfig) -> None:
    problems = [
        f"source {name} has no training document: {tell_fates(count, cleaning=cleaning)}; give it more text, join it"
        " with another source, or drop fewer"
        for name, count in sorted(counts.items())
        if not count["train/documents"]
    ]
    if problems:
        raise DataError(problems)


def _prepared(
    job: Job,
    folder: Path,
    *,
    ledger: Ledger,
    train: dict[str, Merged],
    held_out: Merged,
    tokenizer: Tokenizer,
    skipped_files: int,
) -> PreparedData:
    def total(amount: Callable[[SourceLedger], int]) -> int:
        return sum(amount(source) for source in ledger.sources)

    corpora = {corpus.name: corpus for corpus in job.corpora}
    several = len(job.corpora) > 1
    return PreparedData(
        folder=folder,
        source="; ".join(
            f"{corpus.name}: {corpus.description}" if several else corpus.description for corpus in job.corpora
        ),
        sources=tuple(
            PreparedSource(
                name=source.name,
                weight=corpora[source.name].weight,
                max_epochs=corpora[source.name].max_epochs,
                num_documents=source.train.documents,
                num_bytes=source.train.bytes,
                num_tokens=source.tokens,
            )
            for source in ledger.sources
        ),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        train_tokens=ledger.train_tokens,
        held_out_tokens=ledger.held_out_tokens,
        train_bytes=total(lambda source: source.train.bytes),
        held_out_bytes=total(lambda source: source.held_out.bytes),
        num_documents=total(lambda source: source.train.documents),
        held_out_documents=total(lambda source: source.held_out.documents),
        skipped_files=skipped_files,
        unigram_loss=unigram_loss(
            train_counts=sum(dataset.token_counts for dataset in train.values()),  # type: ignore[arg-type]
            held_out_counts=held_out.token_counts,
        ),
    )


def _inputs(job: Job) -> str:
    text_fields = {corpus.name: corpus.text_field for corpus in job.corpora}
    values = {"key": job.key, "text_fields": text_fields, "files": inputs_of(job.corpora)}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
