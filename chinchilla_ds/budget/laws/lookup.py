"""Scaling laws by name or from a file: the best model for a budget, and its loss.

The forms are in `forms`, the constants in `registry`, the reader of files in `law_file`.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.budget.laws.forms import (
    MAX_EXTRAPOLATION,
    FrontierLaw,
    Law,
    Optimum,
    OptimumInterval,
    ParamsConvention,
    SurfaceLaw,
)
from chinchilla_ds.budget.laws.law_file import LAW_FORMAT, LAW_FORMAT_VERSION, load_law
from chinchilla_ds.budget.laws.registry import PUBLISHED
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.plugins import Kind, find_object, names

__all__ = [
    "ALIASES", "DEFAULT_LAW", "LAWS", "LAW_FORMAT", "LAW_FORMAT_VERSION", "MAX_EXTRAPOLATION",
    "FrontierLaw", "Law", "LawRow", "Optimum", "OptimumInterval", "ParamsConvention", "SurfaceLaw",
    "compare_laws", "get_law", "load_law",
]  # fmt: skip

LAWS: Mapping[str, Law] = {law.name: law for law in PUBLISHED}
DEFAULT_LAW = "besiroglu2024"
"""Agrees with approaches 1 and 2 and with the 20 tokens per parameter that Chinchilla was trained at, fits the 240
points better than approach 3, and has a usable uncertainty. See docs/scaling-laws.md."""
ALIASES: Mapping[str, str] = {"hoffmann2022_approach3": "hoffmann2022"}

_REFUSED = {
    "hoffmann2022_rounded": "its constants are rounded to two digits, which moves N for 5.76e23 FLOPs from 40.4B to "
    "32.2B; use 'hoffmann2022'",
}


@dataclass(frozen=True, kw_only=True)
class LawRow:
    """One law's optimum for a budget, as a row of a table."""

    name: str
    num_params: float
    num_tokens: float
    tokens_per_param: float
    loss: float | None
    """Nats per token of the law's own tokenizer and text: not to be compared between rows of different data."""
    extrapolation: float
    """How many times the budget lies outside the law's fitted range; 1 inside it."""
    params_convention: ParamsConvention


def get_law(name_or_path: str, /) -> Law:
    """Return the law of a name, of `module:object`, or in the file that `chinchilla-ds fit` wrote.

    A name is one of LAWS, or what an installed package announces as an entry point of `chinchilla_ds.laws`.

    Raises:
        ConfigError: no such law or file, an invalid file, or a law that must not be used for planning.
    """
    name = ALIASES.get(name_or_path, name_or_path)
    if name in LAWS:
        return LAWS[name]
    if name in _REFUSED:
        raise ConfigError(f"`law` {name!r} is not for planning: {_REFUSED[name]}")
    path = Path(name)
    if path.suffix == ".json" or len(path.parts) > 1 or os.path.isfile(path):
        return load_law(path)
    announced = names(Kind.LAW)
    if ":" in name or name.partition(",")[0] in announced:
        return _law_from_outside(name)
    known = (*LAWS, *announced)
    raise ConfigError(
        f"`law` ({name!r}) must be one of {', '.join(known)}, the path of a fitted law, or module:object"
        f"{did_you_mean(name, known)}"
    )


def _law_from_outside(name: str) -> Law:
    """Return a law that is named as a plugin is.

    Raises:
        ConfigError: it cannot be loaded, is not a law, or breaks what every law promises.
    """
    law = find_object(Kind.LAW, name, kind_of=Law)
    assert isinstance(law, Law)
    middle = math.sqrt(law.min_flops * law.max_flops)
    best = law.optimal(compute_budget_flops=middle)
    if not (best.num_params > 0 and math.isclose(6 * best.num_params * best.num_tokens, middle, rel_tol=1e-6)):
        raise ConfigError(
            f"law {name}: for {middle:.3g} FLOPs it says N {best.num_params:.3g} and D {best.num_tokens:.3g}, and laws "
            f"say the best of 6 N D = C, which these make {6 * best.num_params * best.num_tokens:.3g}"
        )
    return law


def compare_laws(*, compute_budget_flops: float) -> tuple[LawRow, ...]:
    """Return what every law says of a budget: the published ones, then those that installed packages announce."""
    rows = []
    for law in (*LAWS.values(), *map(_law_from_outside, names(Kind.LAW))):
        best = law.optimal(compute_budget_flops=compute_budget_flops)
        rows.append(
            LawRow(
                name=law.name,
                num_params=best.num_params,
                num_tokens=best.num_tokens,
                tokens_per_param=best.num_tokens / best.num_params,
                loss=best.loss,
                extrapolation=law.extrapolation(compute_budget_flops=compute_budget_flops),
                params_convention=law.params_convention,
            )
        )
    return tuple(rows)
