"""Time per step: devices, rates, the step-time model."""
