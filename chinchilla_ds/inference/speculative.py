"""Speculative decoding: a small model drafts tokens, the large one checks them all in one pass.

The text has exactly the large model's distribution; greedy text is the same token by token.

Source: Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1 and appendix A.1.

Shapes: k drafted tokens, v vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.inference.generate import Continuation, OnText, OpenContinuation, make_rows
from chinchilla_ds.inference.sampling import Sampling, draw, probabilities
from chinchilla_ds.inference.source import CachedDecoder

DRAFT_TOKENS = 4
"""Tokens drafted at a time; the best number in Leviathan et al.'s table 1 is 3 to 7 if half or more are accepted."""


def accept(drafted: Sequence[int], drafts: Tensor, targets: Tensor, *, generator: torch.Generator) -> list[int]:
    """Return the drafted tokens that are accepted, and one more from the large model.

    A token x is accepted with probability min(1, p(x) / q(x)). The first rejected one is replaced by a draw from the
    normalised max(0, p - q); if all are accepted, a draw from p follows.

    Args:
        drafted: k tokens, each drawn from its row of `drafts`.
        drafts: q, the small model's distributions, [k, v].
        targets: p, the large model's after none, one, ... of the drafted tokens, [k + 1, v].
        generator: Source of randomness.
    """
    for place, token in enumerate(drafted):
        q, p = drafts[place], targets[place]
        uniform = torch.rand((), dtype=torch.float64, generator=generator).item()
        if uniform * float(q[token]) >= float(p[token]):
            return [*drafted[:place], draw((p - q).clamp(min=0), generator=generator)]
    return [*drafted, draw(targets[len(drafted)], generator=generator)]


@torch.inference_mode()
def generate_speculatively(
    target: CachedDecoder,
    *,
    draft: CachedDecoder,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> list[Continuation]:
    """Return the continuation of each prompt, one prompt after the other.

    Args:
        target: The large model, whose distribution the text has.
        draft: A smaller model with the same tokenizer.
        prompts: Tokens of each prompt, at least one.
        tokenizer: The tokenizer of both models.
        max_new_tokens: Largest number of tokens to draw.
        sampling: How tokens are drawn, from both models.
        stop: A continuation ends before the first of these strings.
        on_text: Called with text as it becomes certain.
    """
    rows = make_rows(prompts, tokenizer=tokenizer, max_new_tokens=max_new_tokens, stop=stop, on_text=on_text)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        for model in (target, draft):
            model.start([prompt], max_new_tokens=max_new_tokens)
            model.rewind(len(prompt) - 1)
        _Pair(target, draft, sampling, tokenizer.vocab_size, sampling.generator(number)).grow(row, prompt)
    return [row.continuation() for row in rows]


class _Pair:
    """Two models that have read the same prompt."""

    def __init__(
        self,
        target: CachedDecoder,
        draft: CachedDecoder,
        sampling: Sampling,
        vocab_size: int,
        generator: torch.Generator,
    ) -> None:
        self.target, self.draft, self.sampling = target, draft, sampling
        self.vocab_size, self.generator = vocab_size, generator

    def grow(self, row: OpenContinuation, prompt: Sequence[int]) -> None:
        """Draw tokens until the continuation is finished."""
        tokens = list(prompt)
        room = len(prompt) + row.max_new_tokens
        while row.finish is None:
            drafted, drafts = self._propose(tokens, number=min(DRAFT_TOKENS, room - len(tokens) - 1))
            targets = self._distributions(self.target, tokens, drafted)
            for token in accept(drafted, drafts, targets, generator=self.generator):
                row.add(token)
                tokens.append(token)
            for model in (self.target, self.draft):
                model.rewind(len(tokens) - 1)  # the last token is read together with the next ones

    def _propose(self, tokens: Sequence[int], *, number: int) -> tuple[list[int], Tensor]:
        """Return `number` tokens drawn from the small model, and the distributions they are drawn from, [number, v]."""
        drafted: list[int] = []
        rows = []
        for _ in range(number):
            rows.append(self._distributions(self.draft, tokens, drafted)[-1])
            drafted.append(draw(rows[-1], generator=self.generator))
        return drafted, torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def _distributions(self, model: CachedDecoder, tokens: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """Return a model's distributions after `tokens` and after each drafted token that it had not read, [..., v]."""
        everything = [*tokens, *drafted]
        unread = everything[model.length :]
        logits = model.advance([unread], num_logits=min(len(unread), len(drafted) + 1))[0]
        return probabilities(logits[:, : self.vocab_size].float().cpu(), sampling=self.sampling)
