"""The files of a tokenizer, as read from a folder, kept with the data and the checkpoints, and exported.

A tokenizer from a Hugging Face folder is more than an encoder of text: a token that begins every text, chat
templates, names of special tokens, generation settings. All of that is kept byte for byte.
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
"""All files that are read from a folder."""
TEMPLATES_NAME = "additional_chat_templates"
"""The only sub-folder that is read, with `.jinja` files."""

_LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
"""Classes of transformers that put a token in front of text by default."""
_SETTINGS_WITHOUT_BOS = (
    {"tokenizer_class", "eos_token"},
    {"tokenizer_class", "eos_token", "model_max_length", "clean_up_tokenization_spaces"},
)
"""Settings in corpora and checkpoints, and in exports, written by version 0.1.0."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The content of a tokenizer's files, by name."""

    contents: Mapping[str, bytes]
    place: str
    """The tokenizer's name in messages."""

    @classmethod
    def read(cls, path: Path, /, *, home: Path | None = None) -> "TokenizerFiles":
        """Read a SentencePiece model, a `tokenizer.json` with its accompanying files, or a folder of them.

        Args:
            path: A file or a folder.
            home: The folder that links must not leave; None: `path` if it is a folder; a file may be any link.

        Raises:
            DataError: there is no tokenizer, or one of its files must not be read.
        """
        if path.is_dir():
            return cls(contents=_read_folder(path, home=home or path), place=str(path))
        real = path if home is None else find_named(path.parent, path.name, home=home) or path
        content = structured.read_bytes(real, what="the tokenizer", error=DataError)
        if path.suffix != ".json":
            return cls(contents={MODEL_NAME: content}, place=str(path))
        beside = _read_named(path.parent, home=home or path.parent)
        settings = {name: value for name, value in beside.items() if name not in (JSON_NAME, MODEL_NAME)}
        return cls(contents={JSON_NAME: content, **settings}, place=str(path))

    @property
    def is_sentencepiece(self) -> bool:
        """Whether a SentencePiece model encodes: there is no `tokenizer.json`, which takes precedence."""
        return JSON_NAME not in self.contents

    @property
    def is_model_alone(self) -> bool:
        """Whether it is only a SentencePiece model, without files on how to encode or use it."""
        return self.contents.keys() - {GENERATION_NAME} == {MODEL_NAME}

    @property
    def is_one_file(self) -> bool:
        """Whether it is stored as a file rather than a folder."""
        return self.contents.keys() == {MODEL_NAME}

    def where(self, name: str) -> str:
        """Return the name of one of the files in messages."""
        place = Path(self.place)
        if place.suffix not in (".json", ".model"):
            return str(place / name)
        return (
            self.place
            if place.suffix == Path(name).suffix and name in (JSON_NAME, MODEL_NAME)
            else str(place.with_name(name))
        )

    def save(self, path: Path, /) -> None:
        """Write what `read` reads: a file for a lone SentencePiece model, otherwise a folder."""
        if self.is_one_file:
            path.write_bytes(self.contents[MODEL_NAME])
            return
        path.mkdir(exist_ok=True)
        for name, content in self.contents.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

    def config(self) -> dict[str, Any]:
        """Return `tokenizer_config.json`; empty if there is none.

        Raises:
            DataError: it is not a JSON object, or needs its own code.
        """
        config = self.json_object(CONFIG_NAME)
        if config.get("auto_map"):
            raise DataError(
                f"{self.where(CONFIG_NAME)} names its own Python code (auto_map), which is never run; save the "
                "tokenizer with a class of transformers"
            )
        return config

    def json_object(self, name: str, /) -> dict[str, Any]:
        """Return one of the files as JSON; empty if there is none.

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
        """Return a special token, such as `eos_token`, from `tokenizer_config.json` or `special_tokens_map.json`.

        Raises:
            DataError: one of them is not JSON, or has something other than a token.
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
        """Whether, by the settings, a token begins every text; None: not specified.

        Raises:
            DataError: `tokenizer_config.json` is not JSON, or has something other than true or false.
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
        """Whether version 0.1.0 wrote it with a corpus or an export, which never put a token in front of text."""
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
    contents = {name: read_named(folder, name, home=home) for name in NAMES}
    templates = folder / TEMPLATES_NAME
    if templates.is_dir():
        for path in sorted(templates.glob("*.jinja")):
            contents[f"{TEMPLATES_NAME}/{path.name}"] = read_named(templates, path.name, home=home)
    return {name: content for name, content in contents.items() if content is not None}
