"""A trained model's scores on text, for `library.evaluate` and `chinchilla-ds evaluate`."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.prepared import is_prepared
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.evaluation import windows
from chinchilla_ds.evaluation.documents import file_documents, find_files, held_out_documents
from chinchilla_ds.evaluation.scores import Document, Score
from chinchilla_ds.evaluation.scoring import score_documents
from chinchilla_ds.inference.decoder import InferenceDecoder
from chinchilla_ds.inference.model import TrainedModel
from chinchilla_ds.runs.text import text_of_checkpoint

TOTAL = "all"
"""Key of the score over all sources."""
Paths = Mapping[str, tuple[str, ...]]
"""Files, folders and patterns by source; a source without a name is called like its only path."""


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """The result of an evaluation on text."""

    text: str
    """What was read, in one line."""
    window: int
    """Tokens read at a time."""
    stride: int
    """Tokens scored by each window after the first one of a document."""
    dtype: torch.dtype
    """Type of weights and activations."""
    scores: dict[str, Score]
    """By source, in alphabetical order; `TOTAL` comes last."""


def evaluate_on_text(
    model: TrainedModel,
    *,
    load: Callable[[], InferenceDecoder],
    paths: Paths | None = None,
    text_field: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> TextEvaluation:
    """Score a model on the held-out part of prepared text, or on files.

    Args:
        model: The model; settings and text are checked before its weights are read.
        load: Returns the decoder of this rank.
        paths: What to read; a prepared folder must be alone. None: the run's own held-out text.
        text_field: Column that holds the text of files; None: the default one.
        window: Tokens read at a time; None: the model's context.
        stride: Tokens scored by each window after the first one of a document; None: half the window.
        on_tokens: Called with the number of tokens scored since its last call.

    Raises:
        ConfigError: the window or the stride is invalid, or `text_field` is given for prepared text.
        DataError: the text is missing, empty or damaged, or was prepared with a different tokenizer.
    """
    window = window or model.context_tokens
    stride = stride or max(1, window // 2)
    windows.check(window=window, stride=stride, seq_length=model.context_tokens)
    documents, text = _documents(model, paths, text_field=text_field)
    decoder = load()
    scores = score_documents(
        documents,
        token_losses=functools.partial(decoder.token_losses, vocab_size=model.tokenizer.vocab_size),
        eod_id=model.tokenizer.eod_id,
        before_id=model.tokenizer.bos_id,
        window=window,
        stride=stride,
        device=decoder.device,
        on_tokens=on_tokens,
    )
    if not scores:
        raise DataError(f"{text or 'an empty list of paths'} holds no text")
    by_source = {name: scores[name] for name in sorted(scores)} | {TOTAL: sum(scores.values(), start=Score())}
    return TextEvaluation(text=text, window=window, stride=stride, dtype=decoder.dtype, scores=by_source)


def _documents(model: TrainedModel, paths: Paths | None, *, text_field: str | None) -> tuple[Iterator[Document], str]:
    """Return the documents, and one line that says what they are."""
    folder = None if paths is None else _prepared_folder(paths)
    if paths is not None and folder is None:
        sources = find_files(paths, text_field=text_field or DataConfig().text_field)
        return file_documents(sources, tokenizer=model.tokenizer), _words(paths)
    if text_field is not None:
        raise ConfigError("`text_field` has no effect on prepared text, which has no columns: drop it")
    prepared = text_of_checkpoint(model.reader, named=folder)
    if prepared is None:
        raise DataError(
            f"{model.run_folder} does not say where its held-out text is, or that text no longer exists; name a "
            "prepared folder or files to evaluate on"
        )
    return held_out_documents(prepared, tokenizer=model.tokenizer), f"held-out part of {prepared.folder}"


def _prepared_folder(paths: Paths) -> Path | None:
    """Return the prepared folder that the paths name, or None if they name files.

    Raises:
        DataError: they name a prepared folder and something else, or give it a name.
    """
    folder = next((place for places in paths.values() for place in places if is_prepared(Path(place))), None)
    if folder is not None and dict(paths) != {folder: (folder,)}:
        raise DataError(
            f"{_words(paths)} includes the prepared folder {folder}, which has its own sources: name it alone"
        )
    return None if folder is None else Path(folder)


def _words(paths: Paths) -> str:
    return " ".join(place if place == name else f"{name}={place}" for name, places in paths.items() for place in places)
