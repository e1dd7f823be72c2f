"""What the model writes while it is trained: the continuation of held-out text, by whatever layout trains."""

from chinchilla_ds.data.feeding.loader import TokenLoader
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.sampling import Sampling
from chinchilla_ds.inference.source import NextTokenLogits, Recomputed
from chinchilla_ds.training.callback import Sample

PROMPT_TOKENS = 32
NEW_TOKENS = 96


def draw_sample(next_token_logits: NextTokenLogits, *, loader: TokenLoader, tokenizer: Tokenizer, seed: int) -> Sample:
    """Continue the first held-out sequence; on every rank, as the layout may need them all.

    Args:
        next_token_logits: The model, the same on every rank.
        loader: Has the held-out sequences.
        tokenizer: Of the text.
        seed: The same seed gives the same draws, so that samples of one run differ by what was learnt.
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
    """Return whether the last step has reached or passed a multiple of the interval; None: never."""
    if interval_tokens is None:
        return False
    return consumed_tokens // interval_tokens > (consumed_tokens - tokens_per_iter) // interval_tokens
