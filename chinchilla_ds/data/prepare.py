"""Text in, tokenised corpus out: read, split, train a tokenizer, encode, write. A second call finds the result.

The result's folder is named by a key over the files (paths, sizes, times of change), the settings and the versions. It
is built beside its place and moved there when complete, so that what has the name is whole.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.encode import encode_split, unigram_loss
from chinchilla_ds.data.prepared import MANIFEST_NAME, PREPARED_FORMAT_VERSION, PreparedData, PreparedSource
from chinchilla_ds.data.readers import read_documents
from chinchilla_ds.data.sources import Corpus, ReadReport, find_corpus
from chinchilla_ds.data.split import DocumentSurvey
from chinchilla_ds.data.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.units import format_count

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""


def prepare(
    data: DataConfig,
    *,
    vocab_size: int,
    seq_length: int,
    num_tokens: int,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> PreparedData:
    """Return the tokenised corpus that `data` describes, from `folder` if it is there already.

    Args:
        data: The text and how it is split.
        vocab_size: Pieces asked of the tokenizer, which is trained on the training documents alone.
        seq_length: Tokens per sequence; the held-out part must give at least one.
        num_tokens: Tokens the run trains on.
        seed: Chooses the tokenizer's sample.
        folder: Receives one sub-folder per corpus and settings.
        progress: Told how far each stage is.

    Raises:
        DataError: the text is missing, unreadable, or too small; every problem found is listed.
        OutputError: `folder` cannot be written.
    """
    report = progress or (lambda stage, share: None)
    corpus = check_source(data, vocab_size=vocab_size)
    final = folder / _content_key(corpus, data=data, vocab_size=vocab_size, seed=seed)
    if not (final / MANIFEST_NAME).is_file():
        _build_in_place(corpus, data=data, vocab_size=vocab_size, seed=seed, final=final, progress=report)
    prepared = PreparedData.load(final)
    check_enough_tokens(prepared, data=data, num_tokens=num_tokens, seq_length=seq_length)
    return prepared


def check_source(data: DataConfig, *, vocab_size: int) -> Corpus:
    """Return the files of the corpus; nothing is read yet, nor any heavy module imported.

    Raises:
        DataError: settings that cannot be, or files that are missing, empty or of an unknown type.
    """
    problems = []
    if not 0 < data.held_out_fraction < 1:
        problems.append(
            f"held_out_fraction is {data.held_out_fraction:g}; it must lie between 0 and 1, 0.02 for example"
        )
    if not data.max_epochs > 0:
        problems.append(f"max_epochs is {data.max_epochs:g}; it must be above 0")
    if vocab_size < MIN_VOCAB_SIZE:
        problems.append(f"vocab_size is {vocab_size} pieces; byte fallback needs at least {MIN_VOCAB_SIZE}")
    if problems:
        raise DataError(problems)
    return find_corpus(data)


def check_enough_tokens(prepared: PreparedData, *, data: DataConfig, num_tokens: int, seq_length: int) -> None:
    """Check that the corpus feeds the plan within `data.max_epochs` passes.

    Raises:
        DataError: it does not; names what is needed, what is there, and the ways out.
    """
    problems = []
    needed = num_tokens + 1
    if prepared.train_tokens * data.max_epochs < needed:
        epochs = needed / prepared.train_tokens
        share = prepared.train_tokens * data.max_epochs / needed
        problems.append(
            f"the plan trains on {format_count(needed)} tokens ({needed}) and the corpus, {prepared.source}, has"
            f" {format_count(prepared.train_tokens)} ({prepared.train_tokens}); with at most {data.max_epochs:g}"
            f" epoch{'s' if data.max_epochs != 1 else ''} it serves {share:.1%} of the plan's tokens, about"
            f" {share**2:.1%} of its compute budget at the same tokens per parameter. The plan would read it"
            f" {epochs:.2f} times: allow that with `--max-epochs {-(-needed // prepared.train_tokens)}`, give more"
            " text with `--data`, or lower the budget"
        )
    if prepared.held_out_tokens < seq_length + 1:
        problems.append(
            f"the held-out part has {prepared.held_out_tokens} tokens in {prepared.held_out_documents} documents and"
            f" one sequence needs {seq_length + 1}; raise held_out_fraction ({data.held_out_fraction:g}) or give"
            " more text"
        )
    if problems:
        raise DataError(problems)


def _content_key(corpus: Corpus, *, data: DataConfig, vocab_size: int, seed: int) -> str:
    files = [(str(file.path.resolve()), file.kind, file.num_bytes, file.modified_ns) for file in corpus.files]
    settings = [data.text_field, data.held_out_fraction, vocab_size, seed]
    versions = [PREPARED_FORMAT_VERSION, version("sentencepiece"), version("megatron-core")]
    content = json.dumps([files, settings, versions])
    return hashlib.blake2b(content.encode(errors="surrogateescape"), digest_size=10).hexdigest()


def _build_in_place(
    corpus: Corpus, *, data: DataConfig, vocab_size: int, seed: int, final: Path, progress: Progress
) -> None:
    """Build in a temporary folder beside `final`, then give it that name; leave nothing behind on failure."""
    made = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=final.parent, prefix=f".{final.name}.", ignore_cleanup_errors=True
        ) as name:
            partial = Path(name, "data")
            partial.mkdir()
            _build(corpus, data=data, vocab_size=vocab_size, seed=seed, folder=partial, progress=progress)
            _publish(partial, final)
    except OSError as error:
        raise OutputError(f"cannot write prepared data to {final.parent}: {reason(error)}") from None
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something, or was never made
                folder.rmdir()


def _publish(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError:
        if not (final / MANIFEST_NAME).is_file():  # else another process was first, with the same content
            raise


def _build(corpus: Corpus, *, data: DataConfig, vocab_size: int, seed: int, folder: Path, progress: Progress) -> None:
    survey, report = DocumentSurvey(seed=seed), ReadReport()
    for document in _read(corpus, report=report, stage="reading text", progress=progress):
        survey.add(document)
    report.raise_problems()
    threshold = survey.held_out_threshold(held_out_fraction=data.held_out_fraction)
    progress("training the tokenizer", 0.0)
    tokenizer = train_tokenizer(survey.tokenizer_sample(threshold=threshold), vocab_size=vocab_size)
    progress("training the tokenizer", 1.0)

    report = ReadReport()
    documents = _read(corpus, report=report, stage="encoding", progress=progress)
    train, held_out = encode_split(documents, tokenizer=tokenizer, threshold=threshold, folder=folder)
    report.raise_problems()
    if train.num_documents + held_out.num_documents != len(survey.hashes):
        raise DataError(f"the corpus, {corpus.description}, changed while it was being read")
    prepared = PreparedData(
        folder=folder,
        source=corpus.description,
        sources=(
            PreparedSource(
                name="corpus",
                weight=None,
                num_documents=train.num_documents,
                num_bytes=train.num_bytes,
                num_tokens=train.num_tokens,
            ),
        ),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        train_tokens=train.num_tokens,
        held_out_tokens=held_out.num_tokens,
        train_bytes=train.num_bytes,
        held_out_bytes=held_out.num_bytes,
        num_documents=train.num_documents,
        held_out_documents=held_out.num_documents,
        skipped_files=report.skipped_files,
        unigram_loss=unigram_loss(train_counts=train.token_counts, held_out_counts=held_out.token_counts),
    )
    tokenizer.save(prepared.tokenizer_path)
    manifest = dataclasses.replace(prepared, folder=Path("."))  # the folder moves: no path of its own in it
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _read(corpus: Corpus, *, report: ReadReport, stage: str, progress: Progress) -> Iterator[bytes]:
    """Yield the documents, and tell `progress` whenever another percent of the files has been read."""
    told = -1
    for document in read_documents(corpus, report=report):
        percent = 100 * report.read_bytes // corpus.num_bytes
        if percent > told:
            progress(stage, percent / 100)
            told = percent
        yield document
    progress(stage, 1.0)
