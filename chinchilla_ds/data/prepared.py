"""PreparedData: a tokenised corpus on disk and its numbers."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import DataError, reason

PREPARED_FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
LEDGER_NAME = "ledger.json"
INPUTS_NAME = "inputs.json"
HELD_OUT_ORIGINS_NAME = "held_out_origins.npy"
"""Source and bytes of every held-out document; older corpora do not say."""


@dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """The training documents of one named source."""

    name: str
    weight: float | None
    """Share of the training samples; None: by tokens, so that each document is read equally often."""
    num_documents: int
    num_bytes: int
    """UTF-8 bytes of the documents."""
    num_tokens: int
    """End-of-document tokens included."""
    max_epochs: float | None = None
    """How often a run may read it; None: as often as its share asks for."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A tokenised corpus, train and held-out apart. One end-of-document token stands after every document."""

    folder: Path
    source: str
    """One line that says where the text comes from."""
    sources: tuple[PreparedSource, ...]
    """In the order of their names; all have a weight, and these sum to 1, or none has."""
    tokenizer_sha256: str
    vocab_size: int
    """Pieces of the tokenizer, at most what was asked for."""
    eod_id: int
    """The end-of-document token."""
    train_tokens: int
    """Of all sources."""
    held_out_tokens: int
    train_bytes: int
    """UTF-8 bytes of the training documents."""
    held_out_bytes: int
    num_documents: int
    """Documents in train."""
    held_out_documents: int
    skipped_files: int
    """Standard-library files left out because they are not UTF-8."""
    unigram_loss: float
    """Held-out loss of a unigram model counted on train with add-one smoothing, nats per token."""

    @property
    def content_key(self) -> str:
        """A hash of what there is to train on, wherever it lies: counts, weights, tokenizer, unigram loss."""
        values = {**dataclasses.asdict(self), "folder": "", "source": ""}
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=10).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer: a SentencePiece model, or the folder of a Hugging Face tokenizer."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else self.folder / "tokenizer.model"

    @property
    def train_prefixes(self) -> tuple[Path, ...]:
        """Megatron-core datasets of the training documents, one per source, without `.bin` and `.idx`."""
        return tuple(train_prefix(self.folder, name=source.name) for source in self.sources)

    @property
    def train_prefix(self) -> Path:
        """The only one of `train_prefixes`.

        Raises:
            DataError: there are several sources, to be blended.
        """
        if len(self.sources) != 1:
            raise DataError(f"{self.folder} holds {len(self.sources)} sources; read them as a blend")
        return self.train_prefixes[0]

    @property
    def held_out_prefix(self) -> Path:
        """Megatron-core dataset of the held-out documents of all sources, without `.bin` and `.idx`."""
        return self.folder / "held_out"

    @property
    def bytes_per_token(self) -> float:
        """Held-out text bytes per held-out token, end-of-document tokens counted as tokens."""
        return self.held_out_bytes / self.held_out_tokens

    def to_json(self) -> str:
        """Return indented JSON; `folder` is written as text."""
        values = {"format_version": PREPARED_FORMAT_VERSION, **dataclasses.asdict(self), "folder": str(self.folder)}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PreparedData":
        """Read what `to_json` wrote.

        Raises:
            DataError: not JSON, another format version, or other fields.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"the manifest of prepared data is not JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("format_version", None) != PREPARED_FORMAT_VERSION:
            raise DataError(f"this is no manifest of prepared data of format_version {PREPARED_FORMAT_VERSION}")
        wanted = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != wanted:
            raise DataError(f"fields {sorted(values.keys() ^ wanted)} of the manifest are missing or unknown")
        try:
            sources = tuple(PreparedSource(**source) for source in values["sources"])
        except TypeError as error:
            raise DataError(f"field 'sources' of the manifest: {error}") from None
        return cls(**{**values, "folder": Path(values["folder"]), "sources": sources})

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Read the manifest in `folder`, wherever that folder stood when it was written.

        Raises:
            DataError: there is no manifest, or not one of ours.
        """
        try:
            text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{folder} holds no prepared data: {reason(error)}") from None
        try:
            return dataclasses.replace(cls.from_json(text), folder=folder)
        except DataError as error:
            raise DataError(f"{folder / MANIFEST_NAME}: {error}; remove the folder to prepare it again") from None


def train_prefix(folder: Path, *, name: str) -> Path:
    """Return the prefix of a source's training documents."""
    return folder / f"train-{name}"


def is_prepared(path: Path) -> bool:
    """Return whether `path` is a folder of prepared data."""
    return (path / MANIFEST_NAME).is_file()
