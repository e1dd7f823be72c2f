"""Splits documents into windows for a model with a bounded context.

Every token of a document is predicted once: the first from a preceding end-of-document token, those of
the first window from all tokens before them, the later ones from at least `window - stride` tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_ds.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Window:
    """One row of a forward pass: the tokens, their labels, and which of them count."""

    tokens: Sequence[int]
    """Input, at most `window` tokens."""
    labels: Sequence[int]
    """The token after each of them."""
    first_scored: int
    """Labels before this one have been scored by an earlier window."""


def cut(document: Sequence[int], /, *, before: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a document: the first has up to `window` tokens, each further one ends `stride` later.

    Args:
        document: Its tokens.
        before: The token from which the first one is predicted: an end-of-document token.
        window: The most tokens that the model reads at once.
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

    Args:
        window: tokens of a window.
        stride: tokens that each window after the first scores.
        seq_length: the model's context, tokens.

    Raises:
        ConfigError: they do not.
    """
    problems = []
    if window > seq_length:
        problems.append(f"`window={window}` tokens exceeds the model's context of {seq_length}; give at most that")
    if stride > window:
        problems.append(
            f"`stride={stride}` tokens exceeds `window={window}`, so tokens would be left out; give at most that"
        )
    if problems:
        raise ConfigError(problems)
