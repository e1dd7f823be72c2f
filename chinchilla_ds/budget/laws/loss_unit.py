"""What losses and D are counted in."""

from enum import StrEnum


class LossUnit(StrEnum):
    """The unit of a table of runs, and of the law fitted to it."""

    TOKEN = "token"
    """Nats per token, and D in tokens."""
    BYTE = "byte"
    """Nats per byte, and D in bytes: comparable between tokenizers."""
    PERPLEXITY = "perplexity"
    """How some tables write the loss, exp(nats per token); what is read from them is in nats per token."""
