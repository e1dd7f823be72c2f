"""Cutting documents into the windows that a model with a bounded context reads.

Every token of a document is predicted once. The first from an end-of-document token, which stands in front; those of
the first window from all that came before; the later ones from at least `window - stride` tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Window:
    """One forward pass of one row: what is read, what is to be predicted, and which of that counts."""

    tokens: Sequence[int]
    """Input, at most `window` tokens."""
    labels: Sequence[int]
    """The token after each of them."""
    first_scored: int
    """Labels before this one have been scored by an earlier window."""


def cut(document: Sequence[int], /, *, before: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a document: the first holds up to `window` tokens, each next one ends `stride` further.

    Args:
        document: Its tokens.
        before: What the first token is predicted from: an end-of-document token.
        window: Most tokens that the model reads at once.
        stride: Tokens that each window after the first scores; at most `window`.
    """
    read = [before, *document[:-1]]
    scored = 0
    while scored < len(document):
        end = min(window if scored == 0 else scored + stride, len(document))
        start = max(0, end - window)
        yield Window(tokens=read[start:end], labels=document[start:end], first_scored=scored - start)
        scored = end


def check(*, window: int, stride: int, seq_length: int) -> None:
    """Check that windows fit into the context and leave no token out.

    Raises:
        ConfigError: they do not.
    """
    problems = []
    if window > seq_length:
        problems.append(f"`window={window}` tokens is beyond the model's context of {seq_length}; give at most that")
    if stride > window:
        problems.append(
            f"`stride={stride}` tokens is beyond `window={window}`, and tokens would be left out; at most that"
        )
    if problems:
        raise ConfigError(problems)
