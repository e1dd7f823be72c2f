"""The tokenizer of a Hugging Face folder: the files that `AutoTokenizer` reads, with the ids used in training."""

from pathlib import Path
from typing import Any

from chinchilla_ds.data.tokenizing.child import check_in_child
from chinchilla_ds.data.tokenizing.files import (
    CONFIG_NAME,
    GENERATION_NAME,
    JSON_NAME,
    MODEL_NAME,
    TokenizerFiles,
)
from chinchilla_ds.data.tokenizing.sentencepiece_json import as_tokenizers
from chinchilla_ds.data.tokenizing.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from chinchilla_ds.files import write_json

_OURS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
_OURS_OF_MODELS = {
    "split_special_tokens": True,  # as in training, text is never tokenised as a control token
    "add_prefix_space": False,  # these two are for llama.cpp, which adds both by default
    "add_bos_token": False,
}


def write_tokenizer(tokenizer: Tokenizer, /, *, folder: Path, seq_length: int) -> None:
    """Write the tokenizer files of a Hugging Face folder.

    A SentencePiece model on its own becomes a `tokenizer.json`, and is written too, for llama.cpp and for an import.
    Everything else is written unchanged, byte for byte.

    Args:
        tokenizer: The tokenizer of the training text.
        folder: The folder that receives the files.
        seq_length: The model's context in tokens, written if the tokenizer came without settings.

    Raises:
        DataError: no `tokenizer.json` gives the same ids.
    """
    tokenizer.files.save(folder / MODEL_NAME if tokenizer.files.is_one_file else folder)
    eod = tokenizer.token(tokenizer.eod_id)
    config: dict[str, Any] = {**_OURS, "model_max_length": seq_length, "eos_token": eod}
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.files.is_model_alone:
        as_tokenizers(tokenizer).save(str(folder / JSON_NAME))
        _write_config(folder, config | _OURS_OF_MODELS)
    elif isinstance(tokenizer, HuggingFaceTokenizer) and not _came_with_settings(tokenizer.files):
        bos = {} if tokenizer.bos_id is None else {"bos_token": tokenizer.token(tokenizer.bos_id)}
        _write_config(folder, config | bos)


def generation_config(tokenizer: Tokenizer, /) -> dict[str, Any]:
    """Return the `generation_config.json` for a tokenizer that came without one."""
    return {"eos_token_id": tokenizer.eod_id, "pad_token_id": tokenizer.eod_id}


def token_ids(tokenizer: Tokenizer, /) -> dict[str, Any]:
    """Return the BOS, EOS and padding ids for `config.json`.

    Raises:
        DataError: the `generation_config.json` that came with the tokenizer is not a JSON object.
    """
    ours = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eod_id, "pad_token_id": None}
    came = tokenizer.files.json_object(GENERATION_NAME)
    return {name: came.get(name, value) for name, value in ours.items()}


def find_tokenizer(folder: Path, /) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder: its SentencePiece model on its own, or all its files.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    files = TokenizerFiles.read(folder)
    check_in_child(files)
    whole = Tokenizer.of(files)
    eod = whole.token(whole.eod_id)
    contents = dict(files.contents)
    if files.json_object(GENERATION_NAME) == generation_config(whole):
        del contents[GENERATION_NAME]
    if MODEL_NAME in contents and _wrote(files, eod=eod):
        model = TokenizerFiles(contents={MODEL_NAME: contents[MODEL_NAME]}, place=str(folder / MODEL_NAME))
        check_in_child(model)
        alone = Tokenizer.of(model)
        if alone.vocab_size == whole.vocab_size:  # otherwise tokens were added since
            return alone
    return Tokenizer.of(TokenizerFiles(contents=contents, place=files.place))


def _wrote(files: TokenizerFiles, *, eod: str) -> bool:
    """Return whether `write_tokenizer` wrote these files for a SentencePiece model."""
    config = files.config()
    config.pop("model_max_length", None)
    ours = {**_OURS, **_OURS_OF_MODELS, "eos_token": eod}
    return config == ours and files.contents.keys() <= {JSON_NAME, MODEL_NAME, CONFIG_NAME, GENERATION_NAME}


def _came_with_settings(files: TokenizerFiles) -> bool:
    """Return whether there is a `tokenizer_config.json` with more than the end-of-document token."""
    return bool(files.config().keys() - {"eos_token"}) and not files.was_saved_without_bos


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / CONFIG_NAME, config)
