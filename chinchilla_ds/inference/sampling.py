"""Sampling the next token: the distribution, and the draw from it. Every sampler of the package uses this module.

Shapes: v vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chinchilla_ds.errors import ConfigError

_MAX_SEED = 2**40
"""The lowest 20 bits of a generator's seed number the rows of a batch."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: temperature first, then top-k, then top-p among the tokens that remain."""

    temperature: float = 0.8
    """Logits are divided by it; 0 takes the most likely token (greedy)."""
    top_k: int | None = None
    """Only the k most likely tokens can be drawn; None: all."""
    top_p: float | None = None
    """Only the fewest most likely tokens whose probabilities sum to this can be drawn (nucleus sampling, Holtzman et
    al. 2019, arXiv:1904.09751); None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: lists every invalid value.
        """
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.temperature < float("inf"):
            yield f"temperature is {self.temperature:g}; it must be at least 0 (greedy), 0.8 for example"
        if self.top_k is not None and self.top_k < 1:
            yield f"top_k is {self.top_k} tokens; it must be at least 1"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p:g}; it must lie above 0 and not above 1, 0.95 for example"
        if not 0 <= self.seed < _MAX_SEED:
            yield f"seed is {self.seed}; it must lie between 0 and {_MAX_SEED - 1}"

    def generator(self, row: int) -> torch.Generator:
        """Return the random generator of one prompt of a batch: its draws do not depend on the other prompts."""
        return torch.Generator().manual_seed((self.seed << 20) + row)


def probabilities(logits: Tensor, *, sampling: Sampling) -> Tensor:
    """Return the distribution that is sampled, fp64 [..., v]; greedy decoding has a single 1 and zeros.

    In fp64 sums over a large vocabulary are exact enough for a draw by one uniform number.
    """
    if sampling.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    scaled = logits.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled.size(-1):
        least = scaled.topk(sampling.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    distribution = scaled.softmax(dim=-1)
    if sampling.top_p is None or sampling.top_p == 1:
        return distribution
    ordered, order = distribution.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    nucleus = ordered.masked_fill(before >= sampling.top_p, 0.0)
    return torch.zeros_like(distribution).scatter_(-1, order, nucleus / nucleus.sum(dim=-1, keepdim=True))


def draw(distribution: Tensor, *, generator: torch.Generator) -> int:
    """Draw a token from a distribution [v], which need not sum to exactly 1, by one uniform number."""
    cumulative = distribution.cumsum(dim=0)
    uniform = torch.rand((), dtype=torch.float64, generator=generator).item()
    token = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    # if the product rounds to the full sum, the search returns a place past the end
    return token if token < len(cumulative) else int(distribution.nonzero()[-1])


def choose(logits: Tensor, *, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the next token.

    Args:
        logits: Its logits, [v].
        sampling: How tokens are drawn.
        generator: Source of randomness.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    return draw(probabilities(logits, sampling=sampling), generator=generator)
