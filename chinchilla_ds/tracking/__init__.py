"""What a run records about itself: metrics, parameters and files."""
