"""Loss scaling and skipped steps, read from a DeepSpeed engine."""

import math
from typing import Any

from chinchilla_ds.run_plan import Precision


def loss_scale(engine: Any, precision: Precision) -> float:
    """Return the current FP16 loss scale, or 1.0 in other precisions."""
    if precision is not Precision.FP16:
        return 1.0
    optimizer = engine.optimizer
    return float(getattr(optimizer, "cur_scale", None) or optimizer.loss_scale)


def grad_norm(engine: Any, *, skipped: bool) -> float:
    """Return the global gradient norm of the last step before clipping; NaN if the step was skipped."""
    norm = engine.get_global_grad_norm()
    return math.nan if skipped or norm is None else float(norm)
