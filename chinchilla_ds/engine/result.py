"""What a step and an evaluation return. Pure data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step; the same on every rank."""

    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float
    """Global L2 norm before clipping, over all model-parallel ranks; NaN where the step was skipped."""
    learning_rate: float
    skipped: bool
    """Whether a loss or gradient that is no number, FP16 overflow among them, kept the optimizer from stepping."""
    loss_scale: float
    """FP16 loss scale after this step; 1.0 in other precisions."""
    stop: bool = False
    """Whether any rank was asked to stop."""
    save: bool = False
    """Whether some rank found that it was time to save."""
