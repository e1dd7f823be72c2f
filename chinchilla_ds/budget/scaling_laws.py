"""Scaling laws by name or from a file: where the best model of a budget lies, and how good it is.

The forms are in `law_forms`, the constants in `law_registry`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.law_forms import (
    MAX_EXTRAPOLATION,
    FrontierLaw,
    Law,
    Optimum,
    OptimumInterval,
    ParamsConvention,
    SurfaceLaw,
)
from chinchilla_ds.budget.law_registry import PUBLISHED
from chinchilla_ds.errors import ConfigError, did_you_mean, reason

__all__ = [
    "ALIASES", "DEFAULT_LAW", "LAWS", "LAW_FORMAT", "LAW_FORMAT_VERSION", "MAX_EXTRAPOLATION",
    "FrontierLaw", "Law", "LawRow", "Optimum", "OptimumInterval", "ParamsConvention", "SurfaceLaw",
    "compare_laws", "get_law", "load_law",
]  # fmt: skip

LAWS: Mapping[str, Law] = {law.name: law for law in PUBLISHED}
DEFAULT_LAW = "besiroglu2024"
"""Agrees with approaches 1 and 2 and with the 20 tokens per parameter that Chinchilla was trained at, fits the 240
points better than approach 3, and has an uncertainty that can be used. See docs/scaling-laws.md."""
ALIASES: Mapping[str, str] = {"hoffmann2022_approach3": "hoffmann2022"}
LAW_FORMAT = "chinchilla-ds law"
LAW_FORMAT_VERSION = 1

_REFUSED = {
    "hoffmann2022_rounded": "its constants are rounded to two digits, which moves N for 5.76e23 FLOPs from 40.4B to "
    "32.2B; use 'hoffmann2022'",
}
_REQUIRED = ("name", "E", "A", "B", "alpha", "beta", "k", "params_convention", "min_flops", "max_flops", "covariance")
_KEYS = {"format", "format_version", "source", *_REQUIRED}
_POSITIVE = ("A", "B", "alpha", "beta", "k", "min_flops", "max_flops")


@dataclass(frozen=True, kw_only=True)
class LawRow:
    """What one law says of a budget, for a table."""

    name: str
    num_params: float
    num_tokens: float
    tokens_per_param: float
    loss: float | None
    """Nats per token of the law's own tokenizer and text: not to be compared between rows of different data."""
    extrapolation: float
    """Times outside the law's fitted range; 1 inside."""
    params_convention: ParamsConvention


def get_law(name_or_path: str, /) -> Law:
    """Return the registered law of that name, or the one in the file that `chinchilla-ds fit --out` wrote.

    Raises:
        ConfigError: no such law or file, a broken file, or a law that must not be planned with.
    """
    name = ALIASES.get(name_or_path, name_or_path)
    if name in LAWS:
        return LAWS[name]
    if name in _REFUSED:
        raise ConfigError(f"law {name!r} is not for planning: {_REFUSED[name]}")
    path = Path(name)
    if path.suffix == ".json" or len(path.parts) > 1 or path.is_file():
        return load_law(path)
    raise ConfigError(
        f"law ({name!r}) must be one of {', '.join(LAWS)}, or the path of a fitted law{did_you_mean(name, LAWS)}"
    )


def load_law(path: Path, /) -> SurfaceLaw:
    """Read a law that `chinchilla-ds fit --out` wrote.

    Raises:
        ConfigError: unreadable, not a law, or values that mean nothing, all of them named.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"law file {path}: {reason(error)}") from None
    except ValueError as error:
        raise ConfigError(f"law file {path} is not JSON: {error}") from None
    problems = list(_file_problems(data))
    if problems:
        raise ConfigError([f"law file {path}: {problem}" for problem in problems])
    covariance = data["covariance"]
    return SurfaceLaw(
        name=data["name"],
        irreducible_loss=float(data["E"]),
        params_coefficient=float(data["A"]),
        tokens_coefficient=float(data["B"]),
        alpha=float(data["alpha"]),
        beta=float(data["beta"]),
        outer_exponent=float(data["k"]),
        covariance=None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
        params_convention=ParamsConvention(data["params_convention"]),
        min_flops=float(data["min_flops"]),
        max_flops=float(data["max_flops"]),
        source=data.get("source", f"fitted, {path.name}"),
    )


def compare_laws(*, compute_budget_flops: float) -> tuple[LawRow, ...]:
    """Return what every registered law says of a budget, in the registry's order."""
    rows = []
    for law in LAWS.values():
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


def _file_problems(data: Any) -> Iterator[str]:
    """Yield what is wrong with a law file's content."""
    if not isinstance(data, dict) or data.get("format") != LAW_FORMAT:
        yield f'not a fitted law: it must be a JSON object with "format": "{LAW_FORMAT}"'
        return
    if data.get("format_version") != LAW_FORMAT_VERSION:
        yield f"format_version is {data.get('format_version')!r}; this version reads {LAW_FORMAT_VERSION}"
        return
    for key in _REQUIRED:
        if key not in data:
            yield f"{key} is missing"
    for key in sorted(data.keys() - _KEYS):
        yield f"{key} is not a field{did_you_mean(key, _KEYS)}"
    for key in ("name", "source"):
        if key in data and (not isinstance(data[key], str) or not data[key]):
            yield f"{key} is {data[key]!r}; it must be text"
    yield from _number_problems(data)
    allowed = [str(convention) for convention in ParamsConvention]
    if "params_convention" in data and data["params_convention"] not in allowed:
        yield f"params_convention is {data['params_convention']!r}; it must be one of {', '.join(allowed)}"
    if data.get("covariance") is not None:
        yield from _covariance_problems(data["covariance"])


def _number_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for key in _POSITIVE:
        if key in data and not (_is_number(data[key]) and data[key] > 0):
            yield f"{key} is {data[key]!r}; it must be a positive finite number"
    if "E" in data and not (_is_number(data["E"]) and data["E"] >= 0):
        yield f"E is {data['E']!r} nats per token; it must be a finite number of at least 0"
    bounds: list[Any] = [data.get("min_flops"), data.get("max_flops")]
    if all(map(_is_number, bounds)) and bounds[0] > bounds[1]:
        yield f"min_flops ({bounds[0]:g} FLOPs) is above max_flops ({bounds[1]:g} FLOPs)"


def _covariance_problems(covariance: Any) -> Iterator[str]:
    shape = "it must be null or 5 rows of 5 finite numbers, of (log A, log B, log E, alpha, beta)"
    rows = covariance if isinstance(covariance, list) else []
    if len(rows) != 5 or any(not isinstance(row, list) or len(row) != 5 for row in rows):
        yield f"covariance is not 5 x 5; {shape}"
    elif not all(_is_number(entry) for row in rows for entry in row):
        yield f"covariance has entries that are no finite numbers; {shape}"
    elif any(rows[i][i] < 0 or rows[i][j] != rows[j][i] for i in range(5) for j in range(5)):
        yield "covariance is not symmetric with a diagonal of at least 0"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
