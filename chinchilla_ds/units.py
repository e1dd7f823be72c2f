"""Formatting and parsing of the quantities that people type: FLOPs, tokens, parameters, bytes, seconds."""

import math

_DECIMAL = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
_COUNT_SUFFIXES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))


def parse_quantity(text: str) -> float:
    """Return the positive finite number in `text`, which may end in a decimal suffix (`1e13`, `7B`, `1.5T`).

    Raises:
        ValueError: `text` is no number, or not a positive finite one.
    """
    cleaned = text.strip().replace("_", "")
    factor = 1.0
    if cleaned and cleaned[-1] in _DECIMAL:
        factor, cleaned = _DECIMAL[cleaned[-1]], cleaned[:-1]
    try:
        value = float(cleaned) * factor
    except ValueError:
        raise ValueError(f"{text!r} is not a number such as 1e13, 7B or 1.5T") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive finite number")
    return value


def format_count(value: float) -> str:
    """Return a count of tokens or parameters with three digits and a decimal suffix: 6.34B, 472K, 12."""
    for suffix, size in _COUNT_SUFFIXES:
        if abs(value) >= size:
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
    """Return seconds as a person says them: 4.2 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60):02d} s"
    if days == 0:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24} h"
