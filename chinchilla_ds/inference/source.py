"""Sources of logits: a decoder with its cache, or any function of all tokens so far.

Shapes: b prompts, s new tokens, l cached places, v vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from chinchilla_ds.inference.cache import KvCache
from chinchilla_ds.inference.decoder import InferenceDecoder

NextTokenLogits = Callable[[Sequence[int]], Tensor]
"""Maps the tokens so far to the next token's logits [v], the same on every rank."""


class LogitSource(Protocol):
    """A model that reads prompts, then one token per row at a time."""

    def start(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> Tensor:
        """Read the prompts; return the logits [b, v] of each row's next token."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row; return the logits [b, v] of the next."""


class CachedDecoder:
    """A decoder with a cache, which computes each token once."""

    def __init__(self, decoder: InferenceDecoder, *, compiled: bool = False) -> None:
        """Wrap a decoder.

        Args:
            decoder: This rank's stage; all ranks make the same calls.
            compiled: Whether steps of one token use torch.compile, with CUDA graphs on a GPU. Compiling takes
                tens of seconds for each batch size and length.
        """
        self.decoder = decoder
        self.cache: KvCache | None = None
        self._compiled = compiled
        self._step = decoder.step
        if compiled:
            mode = "reduce-overhead" if decoder.device.type == "cuda" else "default"
            self._step = torch.compile(decoder.step, mode=mode, fullgraph=True, dynamic=False)

    def start(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> Tensor:
        """Pad the prompts on the left to one length and run them; return logits [b, v]."""
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.decoder.device)
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.cache = self.decoder.new_cache(padding=padding, max_length=longest + max_new_tokens)
        return self.advance(rows)[:, -1]

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row; return logits [b, v]."""
        cache = self._started()
        if not self._compiled:
            return self.advance([[token] for token in tokens])[:, -1]
        device = self.decoder.device
        place = torch.tensor([cache.length], device=device)
        logits = self._step(torch.tensor(tokens, device=device).unsqueeze(1), place, cache)
        cache.length += 1
        return logits[:, -1].clone()  # the CUDA graph overwrites this tensor in its next step

    def advance(self, tokens: Sequence[Sequence[int]], *, num_logits: int = 1) -> Tensor:
        """Read s more tokens of each row, [b, s]; return the logits after the last `num_logits`, [b, num_logits, v]."""
        ids = torch.tensor(tokens, device=self.decoder.device)
        logits: Tensor = self.decoder(ids, cache=self._started(), num_logits=num_logits)
        return logits

    def rewind(self, length: int) -> None:
        """Discard all places from `length` onwards."""
        self._started().rewind(length)

    @property
    def length(self) -> int:
        """Tokens read per row, padding included."""
        return self._started().length

    def _started(self) -> KvCache:
        assert self.cache is not None, "start() comes first"
        return self.cache


class Recomputed:
    """Any function of all tokens so far, called for each token: slow, but it works under every training layout."""

    def __init__(self, next_token_logits: NextTokenLogits) -> None:
        self._next_token_logits = next_token_logits
        self._rows: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> Tensor:
        """Read the prompts; return logits [b, v]."""
        self._rows = [list(prompt) for prompt in prompts]
        return self._logits()

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row; return logits [b, v]."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._logits()

    def _logits(self) -> Tensor:
        return torch.stack([self._next_token_logits(row) for row in self._rows])


def uncached(decoder: InferenceDecoder) -> Recomputed:
    """Return a decoder that reads all tokens again for each new one: the reference for the cache."""

    def next_token_logits(tokens: Sequence[int]) -> Tensor:
        logits: Tensor = decoder(torch.tensor([list(tokens)], device=decoder.device), num_logits=1)
        return logits[0, -1]

    return Recomputed(next_token_logits)
