"""Samples during training: the continuation of held-out text, under any layout."""

from chinchilla_ds.data.feeding.loader import TokenLoader
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.sampling import Sampling
from chinchilla_ds.inference.source import NextTokenLogits, Recomputed
from chinchilla_ds.training.callback import Sample

PROMPT_TOKENS = 32
NEW_TOKENS = 96


def draw_sample(next_token_logits: NextTokenLogits, *, loader: TokenLoader, tokenizer: Tokenizer, seed: int) -> Sample:
    """Continue the first held-out sequence; on every rank, since the layout may need all of them.

    Args:
        next_token_logits: The model, the same on every rank.
        loader: Provides the held-out sequences.
        tokenizer: The text's tokenizer.
        seed: The same seed gives the same draws, so that samples of one run differ only by what was learnt.
    """
    first = next(loader.held_out_batches(data_parallel_rank=0))
    prompt = first.tokens[0, :PROMPT_TOKENS].tolist()
    [drawn] = generate(
        Recomputed(next_token_logits),
        prompts=[prompt],
        tokenizer=tokenizer,
        max_new_tokens=NEW_TOKENS,
        sampling=Sampling(seed=seed),
    )
    return Sample(prompt=tokenizer.decode(prompt), continuation=drawn.text)


def is_due(*, consumed_tokens: int, tokens_per_iter: int, interval_tokens: int | None) -> bool:
    """Return whether the last step has reached or passed a multiple of the interval; None: never.

    Args:
        consumed_tokens: tokens trained on, the last step included.
        tokens_per_iter: tokens of one optimizer step.
        interval_tokens: tokens between samples; None: no samples.
    """
    if interval_tokens is None:
        return False
    return consumed_tokens // interval_tokens > (consumed_tokens - tokens_per_iter) // interval_tokens
