"""Sums of a model's losses on documents, by source and in total."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_ds.evaluation.bits_per_byte import bits_per_byte


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document to score."""

    source: str
    tokens: Sequence[int]
    """The tokens; the last one is an end-of-document token."""
    num_bytes: int
    """Bytes of its text in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over documents. Every document's end counts as a token: the model must predict where a text ends."""

    documents: int = 0
    tokens: int = 0
    """Tokens, end-of-document tokens included."""
    bytes: int = 0
    nats: float = 0.0
    """Sum of the cross-entropy of all tokens."""
    end_nats: float = 0.0
    """The end-of-document tokens' part of it."""

    def __add__(self, other: "Score") -> "Score":
        return Score(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
            nats=self.nats + other.nats,
            end_nats=self.end_nats + other.end_nats,
        )

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token: exp of the loss."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text and ends of documents, as in training."""
        return bits_per_byte(loss_nats_per_token=self.loss, num_tokens=self.tokens, num_bytes=self.bytes)

    @property
    def text_bits_per_byte(self) -> float:
        """Bits per byte of the text alone, as in lm-eval."""
        text = (self.nats - self.end_nats) / self.tokens
        return bits_per_byte(loss_nats_per_token=text, num_tokens=self.tokens, num_bytes=self.bytes)

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "text_bits_per_byte": self.text_bits_per_byte,
        }
