"""Documents to score: the held-out part of a prepared corpus, or unprocessed files."""

from collections.abc import Iterator, Mapping, Sequence

from chinchilla_ds.data.feeding.indexed import read_documents
from chinchilla_ds.data.prepared import HELD_OUT_ORIGINS_NAME, PreparedData
from chinchilla_ds.data.reading.parts import Problem
from chinchilla_ds.data.reading.readers import parts_of, read_part
from chinchilla_ds.data.reading.sources import Corpus, find_source
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import DataError
from chinchilla_ds.evaluation.scores import Document

HELD_OUT = "held-out"
"""Source of all documents if the corpus does not record their sources."""
_PART_BYTES = 64 * 2**20


def held_out_documents(prepared: PreparedData, *, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield the held-out documents of a prepared corpus, with their sources if recorded.

    Raises:
        DataError: it was prepared with a different tokenizer, or its files have changed since.
    """
    import numpy as np

    if prepared.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"{prepared.folder} was prepared with a different tokenizer from the model's; give `data` the text itself, "
            "or prepare it with the checkpoint's (`prepare.tokenizer`)"
        )
    prepared.check_content()
    documents = read_documents(prepared.held_out_prefix)
    file = prepared.folder / HELD_OUT_ORIGINS_NAME
    if not file.is_file():
        for tokens in documents:
            yield _document(HELD_OUT, tokens.tolist(), tokenizer=tokenizer)
        return
    names = [source.name for source in prepared.sources]
    for tokens, (source, num_bytes) in zip(documents, np.load(file).tolist(), strict=True):
        yield Document(source=names[source], tokens=_without_bos(tokens.tolist(), tokenizer), num_bytes=num_bytes)


def _document(source: str, tokens: list[int], *, tokenizer: Tokenizer) -> Document:
    num_bytes = len(tokenizer.decode(tokens).encode())
    return Document(source=source, tokens=_without_bos(tokens, tokenizer), num_bytes=num_bytes)


def _without_bos(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return a document's tokens without the one that begins it, which says nothing about a model."""
    return tokens[1:] if tokens[:1] == [tokenizer.bos_id] else tokens


def find_files(paths_by_source: Mapping[str, Sequence[str]], /, *, text_field: str) -> tuple[Corpus, ...]:
    """Return the files of every source; nothing is read yet.

    Raises:
        DataError: lists every path that is missing, empty or of an unknown type.
    """
    sources: list[Corpus] = []
    problems: list[str] = []
    for name, paths in paths_by_source.items():
        try:
            sources.append(find_source(paths, text_field=text_field, name=name))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)
    return tuple(sources)


def file_documents(sources: Sequence[Corpus], /, *, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield the documents in files, neither cleaned nor deduplicated; empty ones are skipped.

    Raises:
        DataError: a record that cannot be read.
    """
    for source in sources:
        for file in source.files:
            for part in parts_of(file, text_field=source.text_field, part_bytes=_PART_BYTES):
                for text in read_part(part):
                    if isinstance(text, Problem):
                        if not text.is_skipped:
                            raise DataError(text.message)
                    elif text:
                        tokens = [*tokenizer.encode(text.decode()), tokenizer.eod_id]
                        yield Document(source=source.name, tokens=tokens, num_bytes=len(text))
