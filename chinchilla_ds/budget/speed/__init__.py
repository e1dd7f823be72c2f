"""Seconds per step: devices, rates, the step."""
