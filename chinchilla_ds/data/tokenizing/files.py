"""The files that make a tokenizer: what is read of a folder, kept with the data and the checkpoints, and given back.

A tokenizer that came as a Hugging Face folder is more than what encodes text: a token that begins every text, chat
templates, names of special tokens, settings of generation. All of that stays byte for byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds import structured
from chinchilla_ds.data.named_files import find_named, read_named
from chinchilla_ds.errors import DataError

JSON_NAME = "tokenizer.json"
MODEL_NAME = "tokenizer.model"
CONFIG_NAME = "tokenizer_config.json"
SPECIAL_NAME = "special_tokens_map.json"
GENERATION_NAME = "generation_config.json"
NAMES = (
    JSON_NAME,
    MODEL_NAME,
    CONFIG_NAME,
    SPECIAL_NAME,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_NAME,
)
"""All that is read of a folder."""
TEMPLATES_NAME = "additional_chat_templates"
"""The one folder within, of `.jinja` files."""

_LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
"""Classes of transformers that put a token in front of text unless they are told not to."""
_SETTINGS_WITHOUT_BOS = (
    {"tokenizer_class", "eos_token"},
    {"tokenizer_class", "eos_token", "model_max_length", "clean_up_tokenization_spaces"},
)
"""Of corpora and checkpoints, and of exports, that version 0.1.0 wrote."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The content of a tokenizer's files, by name."""

    contents: Mapping[str, bytes]
    place: str
    """How messages name it."""

    @classmethod
    def read(cls, path: Path, /, *, home: Path | None = None) -> "TokenizerFiles":
        """Read a SentencePiece model, a `tokenizer.json` with what lies beside it, or a folder of them.

        Args:
            path: A file or a folder.
            home: What links must not leave; None: the folder, and a file that is named may be a link to any.

        Raises:
            DataError: there is none, or a file that is not to be read.
        """
        if path.is_dir():
            return cls(contents=_read_folder(path, home=home or path), place=str(path))
        real = path if home is None else find_named(path.parent, path.name, home=home) or path
        content = structured.read_bytes(real, what="the tokenizer", error=DataError)
        if path.suffix != ".json":
            return cls(contents={MODEL_NAME: content}, place=str(path))
        beside = _read_named(path.parent, home=home or path.parent)
        kept = {name: value for name, value in beside.items() if name not in (JSON_NAME, MODEL_NAME)}
        return cls(contents={JSON_NAME: content, **kept}, place=str(path))

    @property
    def is_sentencepiece(self) -> bool:
        """Whether a SentencePiece model encodes: there is no `tokenizer.json`, which goes first."""
        return JSON_NAME not in self.contents

    @property
    def is_model_alone(self) -> bool:
        """Whether it is a SentencePiece model, and nothing else that says how to encode or how to be used."""
        return self.contents.keys() - {GENERATION_NAME} == {MODEL_NAME}

    @property
    def is_one_file(self) -> bool:
        """Whether it is kept as a file, and not as a folder."""
        return self.contents.keys() == {MODEL_NAME}

    def where(self, name: str) -> str:
        """Return how messages name one of the files."""
        place = Path(self.place)
        if place.suffix not in (".json", ".model"):
            return str(place / name)
        return (
            self.place
            if place.suffix == Path(name).suffix and name in (JSON_NAME, MODEL_NAME)
            else str(place.with_name(name))
        )

    def save(self, path: Path, /) -> None:
        """Write what `read` reads: a file for a SentencePiece model without anything else, or a folder."""
        if self.is_one_file:
            path.write_bytes(self.contents[MODEL_NAME])
            return
        path.mkdir(exist_ok=True)
        for name, content in self.contents.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

    def config(self) -> dict[str, Any]:
        """Return `tokenizer_config.json`; empty where there is none.

        Raises:
            DataError: it is not a JSON object, or wants code of its own.
        """
        config = self.json_object(CONFIG_NAME)
        if config.get("auto_map"):
            raise DataError(
                f"{self.where(CONFIG_NAME)} names Python code of its own (auto_map), which is never run; save the "
                "tokenizer with a class of transformers"
            )
        return config

    def json_object(self, name: str, /) -> dict[str, Any]:
        """Return one of the files as JSON; empty where there is none.

        Raises:
            DataError: it is not a JSON object.
        """
        if name not in self.contents:
            return {}
        values = structured.parse_json(self.contents[name], where=self.where(name), error=DataError)
        if not isinstance(values, dict):
            raise DataError(f"{self.where(name)} is not a JSON object")
        return values

    def special_token(self, key: str, /) -> str | None:
        """Return what `tokenizer_config.json` or `special_tokens_map.json` calls a token, such as `eos_token`.

        Raises:
            DataError: one of them is not JSON, or says something else than a token.
        """
        for name, values in ((CONFIG_NAME, self.config()), (SPECIAL_NAME, self.json_object(SPECIAL_NAME))):
            named = values.get(key)
            token = named.get("content") if isinstance(named, dict) else named
            if token is None and not isinstance(named, dict):
                continue
            if not isinstance(token, str) or not token:
                raise DataError(f"{self.where(name)}: {key} is {named!r:.80}; it must be the text of a token")
            return token
        return None

    @property
    def adds_bos(self) -> bool | None:
        """Whether the settings say that a token begins every text; None: they do not say.

        Raises:
            DataError: `tokenizer_config.json` is not JSON, or says something else than true or false.
        """
        config = self.config()
        adds = config.get("add_bos_token")
        if adds is not None and not isinstance(adds, bool):
            raise DataError(f"{self.where(CONFIG_NAME)}: add_bos_token is {adds!r:.80}; it must be true or false")
        if adds is None and self.is_sentencepiece:
            of_class = str(config.get("tokenizer_class")).removesuffix("Fast")
            return True if of_class in _LLAMA_CLASSES else None
        return adds

    @property
    def was_saved_without_bos(self) -> bool:
        """Whether an early version wrote it with a corpus or an export: it never put a token in front of text."""
        return self.config().keys() in _SETTINGS_WITHOUT_BOS


def _read_folder(folder: Path, *, home: Path) -> dict[str, bytes]:
    contents = _read_named(folder, home=home)
    if JSON_NAME not in contents and MODEL_NAME not in contents:
        raise DataError(
            f"{folder} holds neither {JSON_NAME} nor {MODEL_NAME}; a slow Hugging Face tokenizer is converted by"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return contents


def _read_named(folder: Path, *, home: Path) -> dict[str, bytes]:
    found = {name: read_named(folder, name, home=home) for name in NAMES}
    templates = folder / TEMPLATES_NAME
    if templates.is_dir():
        for path in sorted(templates.glob("*.jinja")):
            found[f"{TEMPLATES_NAME}/{path.name}"] = read_named(templates, path.name, home=home)
    return {name: content for name, content in found.items() if content is not None}
