"""What a step and an evaluation return. Pure data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step; the same on every rank."""

    loss: float
    """Mean over the global batch of what text is measured by: cross entropy, nats per token."""
    grad_norm: float
    """Global L2 norm before clipping, over all model-parallel ranks; NaN where the step was skipped."""
    learning_rate: float
    skipped: bool
    """Whether a loss or gradient that is no number, FP16 overflow among them, kept the optimizer from stepping."""
    loss_scale: float
    """FP16 loss scale after this step; 1.0 in other precisions."""
    objective_loss: float | None = None
    """Mean of what was optimised; None where that is `loss`."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Means of what the objective reports, by its names."""
    stop: bool = False
    """Whether any rank was asked to stop."""
    save: bool = False
    """Whether some rank found that it was time to save."""

    @property
    def is_finite(self) -> bool:
        """Whether the losses are numbers, the measured one and the optimised one."""
        return math.isfinite(self.loss) and (self.objective_loss is None or math.isfinite(self.objective_loss))
