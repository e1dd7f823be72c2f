"""Bits per byte: a loss that can be compared between tokenizers."""

import math


def bits_per_byte(*, loss_nats_per_token: float, num_tokens: int, num_bytes: int) -> float:
    """Return the loss in bits per byte of text, (num_tokens / num_bytes) * loss / ln 2.

    Source: Gao et al. 2020, "The Pile" (arXiv:2101.00027), section 3.1. `num_tokens` includes the end-of-document
    tokens, which contribute to the loss but have no bytes.

    Args:
        loss_nats_per_token: Mean cross-entropy, natural logarithm.
        num_tokens: Number of tokens of the text.
        num_bytes: Length of the same text in UTF-8.

    Raises:
        ValueError: there are no tokens or no bytes.
    """
    if num_tokens <= 0 or num_bytes <= 0:
        raise ValueError(f"bits per byte need tokens and bytes, not {num_tokens} tokens and {num_bytes} bytes")
    return loss_nats_per_token / math.log(2) * num_tokens / num_bytes
