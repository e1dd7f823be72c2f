"""Bytes per device: model states, activations, the peak."""
