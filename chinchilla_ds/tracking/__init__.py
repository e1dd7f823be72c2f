"""Records of a run: metrics, parameters and files."""
