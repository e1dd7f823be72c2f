"""Blends: the share of the training samples that each named source provides.

Weights are given, or follow from the sources' sizes, or from UniMax: all sources get the same share, except that none
is read more often than its cap allows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import DataError
from chinchilla_ds.units import format_count

WEIGHT_TOLERANCE = 1e-6
"""Tolerance of the sum of the weights around 1."""

Share: TypeAlias = tuple[str, float | None]
"""A source's name, and its weight or cap."""


@dataclass(frozen=True, kw_only=True)
class BlendSource:
    """One named source, as requested."""

    name: str
    prefix: Path
    """Megatron-core dataset of its training documents, without `.bin` and `.idx`."""
    num_tokens: int
    """Distinct tokens in it."""
    weight: float | None = None
    """Share of the training samples; None: chosen by `blend`."""
    max_epochs: float | None = None
    """Largest number of passes over it; None: as many as its weight requires."""


@dataclass(frozen=True, kw_only=True)
class BlendShare:
    """One source's part in a run."""

    name: str
    prefix: Path
    weight: float
    """Share of the training samples. The weights of a blend sum to 1."""
    epochs: float
    """Number of passes of the run over the source."""


def blend_of(prepared: PreparedData, *, num_tokens: int) -> tuple[BlendShare, ...]:
    """Return each source's share of a run of `num_tokens` tokens.

    Raises:
        DataError: the manifest's weights or caps are invalid, or the run needs more than the caps allow.
    """
    sources = [
        BlendSource(
            name=source.name,
            prefix=prefix,
            num_tokens=source.num_tokens,
            weight=source.weight,
            max_epochs=source.max_epochs,
        )
        for source, prefix in zip(prepared.sources, prepared.train_prefixes, strict=True)
    ]
    return blend(sources, num_tokens=num_tokens)


def blend(sources: Sequence[BlendSource], *, num_tokens: int) -> tuple[BlendShare, ...]:
    """Return each source's share of a run, in the order of `sources`.

    * Every source has a weight: these weights.
    * None has a weight and every one has a cap: UniMax.
    * Neither: by size, so that every document is read equally often.

    Args:
        sources: At least one, with distinct names.
        num_tokens: Tokens that the run trains on.

    Raises:
        DataError: invalid weights or caps, listed together; or a cap that a weight exceeds.
    """
    if problems := list(_problems(sources)):
        raise DataError(problems)
    weights = _weights(sources, num_tokens=num_tokens)
    shares = tuple(
        BlendShare(
            name=source.name,
            prefix=source.prefix,
            weight=weight,
            epochs=weight * num_tokens / source.num_tokens,
        )
        for source, weight in zip(sources, weights, strict=True)
    )
    if broken := list(_broken_caps(sources, shares)):
        raise DataError(broken)
    return shares


def unimax(capacities: Sequence[float], *, total: float) -> list[float]:
    """Return amounts that sum to `total`, all equal except where that exceeds a capacity, which is then used in full.

    Source: Chung et al. 2023 (arXiv:2304.09151), algorithm 1: "UniMax", with epochs x size as capacities.

    Args:
        capacities: Largest amount of each.
        total: At most the sum of the capacities.
    """
    amounts, left = [0.0] * len(capacities), total
    order = sorted(range(len(capacities)), key=capacities.__getitem__)
    for place, index in enumerate(order):
        amounts[index] = min(capacities[index], left / (len(order) - place))
        left -= amounts[index]
    return amounts


def _weights(sources: Sequence[BlendSource], *, num_tokens: int) -> list[float]:
    given = [source.weight for source in sources if source.weight is not None]
    if given:
        return [weight / math.fsum(given) for weight in given]
    sizes = [float(source.num_tokens) for source in sources]
    capacities = [source.max_epochs * source.num_tokens for source in sources if source.max_epochs is not None]
    if capacities and num_tokens > math.fsum(capacities):
        raise DataError(
            f"the run trains on {format_count(num_tokens)} tokens and the sources give at most"
            f" {format_count(math.fsum(capacities))} within their max_epochs; raise max_epochs, add text, or lower the"
            " budget"
        )
    amounts = unimax(capacities, total=num_tokens) if capacities else sizes
    return [amount / math.fsum(amounts) for amount in amounts]


def _problems(sources: Sequence[BlendSource]) -> Iterator[str]:
    """Yield the problems of names, weights, caps and sizes."""
    if not sources:
        yield "a blend needs at least one source"
        return
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{names.count(name)} sources are named {name!r}; names must differ"
    for source in sources:
        if source.num_tokens < 1:
            yield f"source {source.name!r} holds no tokens"
    yield from share_problems(
        weights=[(source.name, source.weight) for source in sources],
        max_epochs=[(source.name, source.max_epochs) for source in sources],
    )


def share_problems(*, weights: Sequence[Share], max_epochs: Sequence[Share]) -> Iterator[str]:
    """Yield the problems of weights and caps, each given with the name of its source."""
    for field, values in (("weight", weights), ("max_epochs", max_epochs)):
        for name, value in values:
            if value is not None and not (math.isfinite(value) and value > 0):
                yield f"{field} of source {name!r} is {value:g}; it must be above 0"
    yield from _mixed("weight", weights)
    given = [(name, weight) for name, weight in weights if weight is not None]
    if not given:
        yield from _mixed("max_epochs", max_epochs)
    total = math.fsum(weight for _, weight in given)
    if len(given) == len(weights) and total > 0 and not abs(total - 1) <= WEIGHT_TOLERANCE:
        near = ", ".join(f"{name} {weight / total:.6g}" for name, weight in given)
        yield f"the weights of the sources sum to {total:.6g}; they must sum to 1, nearest: {near}"


def _mixed(field: str, values: Sequence[Share]) -> Iterator[str]:
    without = [name for name, value in values if value is None]
    if 0 < len(without) < len(values):
        yield f"{field} is given for some sources and not for {', '.join(without)}; give it for all or for none"


def _broken_caps(sources: Sequence[BlendSource], shares: Sequence[BlendShare]) -> Iterator[str]:
    for source, share in zip(sources, shares, strict=True):
        if source.max_epochs is not None and share.epochs > source.max_epochs * (1 + WEIGHT_TOLERANCE):
            nearest = share.weight * source.max_epochs / share.epochs
            yield (
                f"weight {share.weight:g} reads source {source.name!r} ({format_count(source.num_tokens)} tokens)"
                f" {share.epochs:.2f} times and its max_epochs is {source.max_epochs:g}; a weight of at most"
                f" {nearest:.3g} respects it"
            )
