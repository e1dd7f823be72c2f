"""The tokenizer of a Hugging Face folder: what `AutoTokenizer` reads, with the ids that the model was trained on."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from chinchilla_ds.errors import DataError
from chinchilla_ds.export.sentencepiece_json import to_tokenizers

if TYPE_CHECKING:
    import tokenizers

_MODEL_NAME = "tokenizer.model"
_JSON_NAME = "tokenizer.json"
_CONFIG_NAME = "tokenizer_config.json"

_PROBES = (
    "",
    " a  b   c\n\n\td ",
    "def f(x):\n    return x  # 1234567890\n",
    "\u4e16\u754c\uff0c\u4f60\u597d\u3002\u673a\u5668\u5b66\u4e60",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "Gr\u00fc\u00dfe, cafe\u0301, \u0627\u0644\u0639\u0631\u0628",
    "<|endoftext|><unk><0x0A>",
)


def write_tokenizer(path: Path, /, *, folder: Path, seq_length: int) -> Tokenizer:
    """Write the tokenizer files of a Hugging Face folder and return the tokenizer.

    A SentencePiece model becomes a `tokenizer.json`, and is kept beside it: llama.cpp reads it, and so does an import.
    A Hugging Face tokenizer is copied.

    Args:
        path: A SentencePiece model, or the folder of a Hugging Face tokenizer.
        folder: Receives the files.
        seq_length: The model's context in tokens.

    Raises:
        DataError: it cannot be written so that the ids stay the same.
    """
    tokenizer = Tokenizer.load(path)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": seq_length,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = path / _MODEL_NAME if path.is_dir() else path
        converted = to_tokenizers(model.read_bytes(), place=str(model))
        _check_ids(tokenizer, converted, place=str(model))
        converted.save(str(folder / _JSON_NAME))
        shutil.copyfile(model, folder / _MODEL_NAME)
        config |= {
            "eos_token": converted.id_to_token(tokenizer.eod_id),
            "split_special_tokens": True,  # text is never taken for a control token, as in training
            "add_prefix_space": False,  # these two are for llama.cpp, which adds both unless it is told not to
            "add_bos_token": False,
        }
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        shutil.copyfile(path / _JSON_NAME if path.is_dir() else path, folder / _JSON_NAME)
        config["eos_token"] = tokenizer.eod_token
    (folder / _CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def find_tokenizer(folder: Path, /) -> Path:
    """Return the tokenizer of a Hugging Face folder: its SentencePiece model, where that is all of it, or the folder.

    Raises:
        DataError: there is none.
    """
    model, has_json = folder / _MODEL_NAME, (folder / _JSON_NAME).is_file()
    if not model.is_file() and not has_json:
        raise DataError(f"{folder} holds no tokenizer: neither {_JSON_NAME} nor {_MODEL_NAME}")
    if not model.is_file():
        return folder
    if has_json and Tokenizer.load(model).vocab_size != Tokenizer.load(folder).vocab_size:
        return folder  # tokens were added since
    return model


def _check_ids(ours: Tokenizer, theirs: "tokenizers.Tokenizer", *, place: str) -> None:
    """Compare on probes and on the text of every piece."""
    texts = (*_PROBES, *(ours.decode([token]) for token in range(ours.vocab_size)))
    for text in texts:
        wanted, found = ours.encode(text), theirs.encode(text, add_special_tokens=False).ids
        if found != wanted:
            raise DataError(
                f"{place} cannot become a {_JSON_NAME}: {text!r} is {wanted} by SentencePiece and {found} by tokenizers"
            )
