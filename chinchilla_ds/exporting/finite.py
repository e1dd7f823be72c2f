"""Whether weights are finite, in one pass and without a copy."""

import torch
from torch import Tensor


def is_finite(values: Tensor, /) -> bool:
    """Return whether none of the values is NaN or infinite: both show in the least and the greatest."""
    if not values.numel():
        return True
    least, greatest = torch.aminmax(values)
    return bool(torch.isfinite(least) and torch.isfinite(greatest))


def count_non_finite(values: Tensor, /) -> int:
    """Return how many of the values are NaN or infinite."""
    return int((~torch.isfinite(values)).sum())
