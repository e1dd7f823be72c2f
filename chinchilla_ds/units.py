"""Formatting and parsing of quantities: FLOPs, tokens, parameters, bytes, seconds."""

import math
import re

_DECIMAL = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
_DECIMAL |= {suffix.lower(): _DECIMAL[suffix] for suffix in "KMBT"}
_COUNT_SUFFIXES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))
_UNITS = {
    "FLOPs": ("flop", "flops"),
    "tokens": ("token", "tokens"),
    "parameters": ("param", "params", "parameter", "parameters"),
    "GPU-hours": ("h", "hour", "hours", "gpu-hour", "gpu-hours", "gpuh"),
    "GPUs": ("gpu", "gpus"),
    "FLOP/s": ("flop/s", "flops/s"),
    "bytes": ("byte", "bytes", "kib", "mib", "gib", "tib"),
    "seconds": ("s", "sec", "second", "seconds"),
}
_SMALLEST, _LARGEST = 1e-30, 1e60
"""Far beyond any quantity of a run, and far from overflow of their products."""
_QUANTITY = re.compile(
    r"([-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|nan|[-+]?inf(?:inity)?)(.*)", re.I
)


def parse_quantity(text: str, /, *, unit: str | None = None) -> float:
    """Return the positive finite number in `text`: `1e13`, `7B`, `1.5T tokens`, `1 ZFLOPs`.

    Args:
        text: a number, then an optional decimal suffix, then an optional unit.
        unit: the expected unit, one of _UNITS; another unit in `text` is refused.

    Raises:
        ValueError: `text` is not a number, not positive and finite, absurdly small or large, or in another unit.
    """
    example = "is not a number such as 1e13, 7B or 1.5T"
    if unit == "FLOPs":
        example = "is not a number of FLOPs such as 1e21, 5E or 1 ZFLOP"
    matched = _QUANTITY.fullmatch(text.strip())
    if matched is None:
        raise ValueError(f"{text!r} {example}")
    factor, name = _suffix(matched[2].strip())
    if factor is None:
        raise ValueError(f"{text!r} {example}")
    if name is not None and name != unit:
        wanted = f"{unit} are" if unit is not None else "a plain number is"
        raise ValueError(f"{text!r} is in {name}, and {wanted} asked for")
    value = float(matched[1].replace("_", "")) * factor
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive finite number")
    if not _SMALLEST <= value <= _LARGEST:
        raise ValueError(f"{text!r} is outside the supported range, {_SMALLEST:g} to {_LARGEST:g}")
    return value


def parse_share(text: str, /) -> float:
    """Return the share in `text`: `0.4` or `40%`. Whether it is a possible one is for the caller to check.

    Raises:
        ValueError: `text` is neither a number nor a percentage.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return parse_quantity(number) / (100 if percent else 1)
    except ValueError:
        raise ValueError(f"{text!r} is not a share such as 0.4 or 40%") from None


def _suffix(rest: str) -> tuple[float | None, str | None]:
    """Return the factor and the unit that follow a number; a factor of None if they are invalid."""
    if rest in _DECIMAL:
        return _DECIMAL[rest], None
    units = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}
    if rest == "" or rest.lower() in units:
        return 1.0, units.get(rest.lower())
    # before a unit, a prefix may be written in lower case: 1 zflop
    factor, name = _DECIMAL.get(rest[0], _DECIMAL.get(rest[0].upper())), rest[1:].strip().lower()
    return (factor, units[name]) if name in units else (None, None)


def format_count(value: float) -> str:
    """Return a count of tokens or parameters with three digits and a decimal suffix: 6.34B, 472K, 12."""
    for suffix, size in _COUNT_SUFFIXES:
        if abs(value) >= 0.9995 * size:  # 999.6 million is 1B, not 1e+03M
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def format_flops(value: float) -> str:
    """Return FLOPs in the notation that papers use: 5.76e+23 FLOPs."""
    return f"{value:.3g} FLOPs"


def format_bytes(value: float) -> str:
    """Return bytes in binary units: 1.50 GiB."""
    for suffix, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.2f} {suffix}"
    return f"{value:.0f} B"


def format_duration(seconds: float) -> str:
    """Return seconds in readable form: 4.2 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60):02d} s"
    if days == 0:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24} h"
