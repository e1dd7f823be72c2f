"""Values of a table of runs that are in another unit, or in another column."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from chinchilla_ds.budget.laws.forms import LARGEST_LOSS

FLOPS_FACTOR = 3.0
"""Largest factor between `flops` and 6 N D: attention over long contexts and untied tables stay well within it."""
SMALLEST_COUNT = 1e3
"""Parameters or tokens below this are assumed to be in millions or billions."""
LARGEST_COUNT = 1e18
"""Parameters or tokens above this are in another unit, or another column; FLOPs, if given, show which."""
SMALLEST_LOSS = 0.01
GUESSING_LOSS = 13.0
"""Nats per token of a uniform guess among 442,413 pieces, more than any tokenizer in use has (ln 262,144 = 12.5)."""
LARGEST_GUESSING_SHARE = 0.1
"""Share of the runs that may be worse than a guess: those have diverged. If more are, the losses are not in nats."""


class RunValues(Protocol):
    """The numbers of one run."""

    @property
    def where(self) -> str:
        """Its place."""

    @property
    def num_params(self) -> float:
        """N."""

    @property
    def num_tokens(self) -> float:
        """D."""

    @property
    def loss(self) -> float:
        """Nats per token."""

    @property
    def flops(self) -> float | None:
        """C, if it is recorded."""


def unit_problems(rows: Sequence[RunValues], /) -> Iterator[str]:
    """Yield counts that look like millions or billions, and losses that are not in nats per token."""
    for name in ("num_params", "num_tokens"):
        small = [row for row in rows if getattr(row, name) < SMALLEST_COUNT]
        values = [getattr(row, name) for row in rows]
        if rows and len(small) == len(rows):
            yield (
                f"{name} is {min(values):g} to {max(values):g} in every row, which looks like millions or billions; "
                "give plain numbers (7e9) or a suffix (7B)"
            )
        else:
            for row in small:
                yield (
                    f"{row.where}: {name} is {getattr(row, name):g}, and other rows have up to {max(values):.3g}; is "
                    "it in millions or billions? Give plain numbers (7e9) or a suffix (7B)"
                )
        for row in rows:
            if row.flops is None and getattr(row, name) > LARGEST_COUNT:
                yield f"{row.where}: {name} is {getattr(row, name):.3g}; it must be at most {LARGEST_COUNT:.0e}"
    yield from _loss_problems(rows)


def _loss_problems(rows: Sequence[RunValues]) -> Iterator[str]:
    for row in rows:
        if row.loss > LARGEST_LOSS:
            yield f"{row.where}: loss is {row.loss:g}; it must be in nats per token, at most {LARGEST_LOSS:g}"
    if rows and all(row.loss < SMALLEST_LOSS for row in rows):
        yield (
            f"loss is at most {max(row.loss for row in rows):g} in every row; it must be in nats per token, and "
            f"language models stay above {SMALLEST_LOSS:g}"
        )
    guessing = [row for row in rows if GUESSING_LOSS < row.loss <= LARGEST_LOSS]
    if len(guessing) > LARGEST_GUESSING_SHARE * len(rows):
        losses = [row.loss for row in guessing]
        yield (
            f"loss is {min(losses):g} to {max(losses):g} in {len(losses)} of {len(rows)} runs, and a uniform guess "
            f"among {math.exp(GUESSING_LOSS):,.0f} pieces has {GUESSING_LOSS:g} nats per token: are they perplexities? "
            "`unit=perplexity` takes their logarithm"
        )


def loss_notes(rows: Sequence[RunValues], /) -> Iterator[str]:
    """Yield the few runs that are worse than a guess."""
    for row in rows:
        if row.loss > GUESSING_LOSS:
            yield (
                f"{row.where}: loss is {row.loss:g} nats per token, worse than a uniform guess: the run has diverged, "
                "and the rule for outliers would drop it"
            )


def flops_problems(rows: Sequence[RunValues], /) -> Iterator[str]:
    """Yield every row whose `flops` cannot be those of training N parameters on D tokens."""
    for row in rows:
        if row.flops is None:
            continue
        ratio = row.flops / (6 * row.num_params * row.num_tokens)
        if 1 / FLOPS_FACTOR <= ratio <= FLOPS_FACTOR:
            continue
        swapped = next((name for name in ("num_params", "num_tokens") if _fits_swapped(row, name)), None)
        hint = f"; {swapped} and flops look swapped" if swapped else "; check the units of all three"
        yield (
            f"{row.where}: flops is {row.flops:.3g}, {ratio:.3g} times 6 N D = "
            f"{6 * row.num_params * row.num_tokens:.3g}; it must be within a factor of {FLOPS_FACTOR:g}{hint}"
        )


def _fits_swapped(row: RunValues, name: str) -> bool:
    """Return whether `flops` and another column make sense with their places exchanged."""
    assert row.flops is not None
    other = row.num_tokens if name == "num_params" else row.num_params
    value: float = getattr(row, name)
    ratio = value / (6 * row.flops * other)
    return 1 / FLOPS_FACTOR <= ratio <= FLOPS_FACTOR
