"""A prepared corpus's facts for the planner: its vocabulary, and its number of distinct tokens."""

import dataclasses
from pathlib import Path

from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.data.prepare import prepared_folder
from chinchilla_ds.data.prepared import is_prepared
from chinchilla_ds.errors import DataError


def corpus_data(folder: Path, /, *, max_epochs: float = DataConfig().max_epochs) -> DataConfig:
    """Return the data of a prepared corpus.

    Raises:
        DataError: the folder is not prepared, so that its tokens are unknown.
    """
    if not is_prepared(folder):
        raise DataError(
            f"{folder} is not a prepared corpus, so that its tokens are unknown: name one of `chinchilla-ds prepare`"
        )
    return DataConfig(paths=(folder,), max_epochs=max_epochs)


def with_prepared_corpus(config: RunConfig, /) -> RunConfig:
    """Return the config with vocabulary and unique tokens of the prepared folder that it names, unless it sets them.

    For text that is not prepared yet neither is known. With `inference_tokens` the unique tokens are left out, since no
    law combines the two; whether the corpus is large enough is checked before training in any case.

    Raises:
        DataError: the folder, or the blend of it, is broken.
    """
    prepared = prepared_folder(config.data)
    if prepared is None:
        return config
    unique_tokens = config.unique_tokens
    if unique_tokens is None and config.inference_tokens is None:
        unique_tokens = float(prepared.train_tokens)
    return dataclasses.replace(
        config,
        vocab_size=prepared.vocab_size if config.vocab_size is None else config.vocab_size,
        unique_tokens=unique_tokens,
    )
