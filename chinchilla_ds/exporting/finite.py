"""Check whether weights are finite, in one pass and without a copy."""

import torch
from torch import Tensor


def is_finite(values: Tensor, /) -> bool:
    """Return whether all values are finite: NaN and infinity both show in the minimum and maximum."""
    if not values.numel():
        return True
    least, greatest = torch.aminmax(values)
    return bool(torch.isfinite(least) and torch.isfinite(greatest))


def count_non_finite(values: Tensor, /) -> int:
    """Return the number of non-finite values."""
    return int((~torch.isfinite(values)).sum())
