"""Evaluation of a trained model, in comparable units."""
