"""A blend in a file: weights for the named sources of a prepared corpus, instead of its own.

weights:
  "code": 0.25
  "web": 0.75
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.data.blend import WEIGHT_TOLERANCE
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import DataError, did_you_mean
from chinchilla_ds.structured import read_yaml
from chinchilla_ds.units import format_count

WEIGHTS = "weights"
"""The only key of the file."""


def read_blend(path: Path, /) -> dict[str, float]:
    """Return the weights in a file, by source.

    Raises:
        DataError: unreadable, not of this form, or weights that are not shares; all are listed.
    """
    data = read_yaml(path, what="blend", error=DataError)
    weights = data.get(WEIGHTS) if isinstance(data, dict) else None
    if not isinstance(weights, dict) or not weights or data.keys() != {WEIGHTS}:
        raise DataError(f"blend {path} must hold one mapping, `{WEIGHTS}:`, with a line `NAME: WEIGHT` per source")
    if problems := list(_weight_problems(weights)):
        raise DataError([f"blend {path}: {problem}" for problem in problems])
    return {name: float(weight) for name, weight in weights.items()}


def _weight_problems(weights: Mapping[str, Any]) -> Iterator[str]:
    sound = True
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            sound = False
            yield f"the weight of {name} is {weight!r}; it must be a finite number of at least 0"
    total = math.fsum(weights.values()) if sound else 1.0
    if abs(total - 1) > WEIGHT_TOLERANCE:
        near = ", ".join(f"{name} {weight / total:.6g}" for name, weight in weights.items()) if total else "none"
        yield f"the weights sum to {total:g}; they must sum to 1, nearest: {near}"


def with_blend(prepared: PreparedData, weights: Mapping[str, float], /, *, where: str) -> PreparedData:
    """Return the corpus with these weights; sources of weight 0 are left out, and the counts are those of the others.

    Args:
        prepared: The corpus; the held-out part is still that of all its sources.
        weights: Weights by source; they sum to 1.
        where: Start of each problem's message.

    Raises:
        DataError: the sources differ from the corpus's.
    """
    known = [source.name for source in prepared.sources]
    named = ", ".join(known)
    problems = [
        f"{name!r} is not a source of {prepared.folder}{did_you_mean(name, known) or f'; its sources are {named}'}"
        for name in weights
        if name not in known
    ]
    problems += [
        f"source {name!r} of {prepared.folder} has no weight; 0 leaves it out" for name in known if name not in weights
    ]
    if problems:
        raise DataError([f"{where}: {problem}" for problem in problems])
    sources = tuple(
        dataclasses.replace(source, weight=weights[source.name])
        for source in prepared.sources
        if weights[source.name] > 0
    )
    return dataclasses.replace(
        prepared,
        source=f"{prepared.source}, blended",
        sources=sources,
        train_tokens=sum(source.num_tokens for source in sources),
        train_bytes=sum(source.num_bytes for source in sources),
        num_documents=sum(source.num_documents for source in sources),
    )


def epoch_problems(prepared: PreparedData, *, num_tokens: int, max_epochs: float) -> Iterator[str]:
    """Yield a problem for every source that a run of `num_tokens` tokens would read more than `max_epochs` times.

    Args:
        prepared: the corpus, with the weights of the blend.
        num_tokens: tokens that the run trains on.
        max_epochs: largest number of passes over each source.
    """
    for source in prepared.sources:
        epochs = (source.weight or 0.0) * num_tokens / source.num_tokens
        if epochs > max_epochs * (1 + WEIGHT_TOLERANCE):
            yield (
                f"weight {source.weight:g} of source {source.name!r} ({format_count(source.num_tokens)} tokens) reads "
                f"it {epochs:.2f} times in a run of {format_count(num_tokens)} tokens; allow that with "
                f"`data.max_epochs={math.ceil(epochs)}`, or give it a weight of at most "
                f"{max_epochs * source.num_tokens / num_tokens:.3g}"
            )
