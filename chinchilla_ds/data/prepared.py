"""PreparedData: a tokenised corpus on disk and its numbers."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import DataError

PREPARED_FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A tokenised corpus, train and held-out apart. One end-of-document token stands after every document."""

    folder: Path
    source: str
    """One line that says where the text comes from."""
    tokenizer_sha256: str
    vocab_size: int
    """Pieces of the tokenizer, at most what was asked for."""
    eod_id: int
    """The end-of-document token."""
    train_tokens: int
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
    def tokenizer_path(self) -> Path:
        """SentencePiece model."""
        return self.folder / "tokenizer.model"

    @property
    def train_prefix(self) -> Path:
        """Megatron-core dataset of the training documents, without `.bin` and `.idx`."""
        return self.folder / "train"

    @property
    def held_out_prefix(self) -> Path:
        """Megatron-core dataset of the held-out documents, without `.bin` and `.idx`."""
        return self.folder / "held_out"

    @property
    def bytes_per_token(self) -> float:
        """Held-out text bytes per held-out token, end-of-document tokens counted as tokens."""
        return self.held_out_bytes / self.held_out_tokens

    def to_json(self) -> str:
        """Return indented JSON; `folder` is written as text."""
        values = {"format_version": PREPARED_FORMAT_VERSION, **dataclasses.asdict(self), "folder": str(self.folder)}
        return json.dumps(values, indent=2) + "\n"

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
        return cls(**{**values, "folder": Path(values["folder"])})

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Read the manifest in `folder`, wherever that folder stood when it was written.

        Raises:
            DataError: there is no manifest, or not one of ours.
        """
        try:
            text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{folder} holds no prepared data: {error.strerror}") from None
        try:
            return dataclasses.replace(cls.from_json(text), folder=folder)
        except DataError as error:
            raise DataError(f"{folder / MANIFEST_NAME}: {error}; remove the folder to prepare it again") from None
