"""Results of a step and of an evaluation. Pure data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step; the same on every rank."""

    loss: float
    """Mean over the global batch of the measured loss: cross entropy, nats per token."""
    grad_norm: float
    """Global L2 norm before clipping, over all model-parallel ranks; NaN if the step was skipped."""
    learning_rate: float
    skipped: bool
    """Whether a non-finite loss or gradient, such as an FP16 overflow, prevented the optimizer step."""
    loss_scale: float
    """FP16 loss scale after this step; 1.0 in other precisions."""
    objective_loss: float | None = None
    """Mean of the optimised loss; None if that is `loss`."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Means of the objective's scalars, by name."""
    stop: bool = False
    """Whether any rank was asked to stop."""
    save: bool = False
    """Whether it is time to save, by the clock of some rank."""

    @property
    def is_finite(self) -> bool:
        """Whether both losses, the measured and the optimised one, are finite."""
        return math.isfinite(self.loss) and (self.objective_loss is None or math.isfinite(self.objective_loss))
