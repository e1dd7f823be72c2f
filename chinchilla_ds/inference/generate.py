"""Sample text from a model that tells the logits of the next token.

Shapes: s sequence, v vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NextTokenLogits = Callable[[Sequence[int]], Tensor]
"""From the tokens so far to the next token's logits [v], the same on every rank."""


def generate(
    next_token_logits: NextTokenLogits,
    *,
    prompt: Sequence[int],
    max_new_tokens: int,
    vocab_size: int,
    eod_id: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[int]:
    """Return the tokens that follow `prompt`, drawn from softmax(logits / temperature), up to the end of the document.

    Args:
        next_token_logits: The model; every rank calls this function with the same arguments.
        prompt: At least one token.
        max_new_tokens: Tokens to draw at most.
        vocab_size: Pieces of the tokenizer; the padded rows above are never drawn.
        eod_id: The token that ends a document; not returned.
        temperature: Below 1 sharpens the distribution.
        seed: Draws are the same for the same seed, on every rank.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        logits = next_token_logits(tokens)[:vocab_size].float().cpu()
        chosen = int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))
        if chosen == eod_id:
            break
        tokens.append(chosen)
    return tokens[len(prompt) :]
