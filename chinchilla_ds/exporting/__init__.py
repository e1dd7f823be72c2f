"""Trained models for other tools, and other models for training here: Hugging Face folders in both directions."""
