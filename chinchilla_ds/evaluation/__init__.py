"""What a trained model is worth, in units that can be compared."""
