"""The decoder's shape: sizes, parameters, FLOPs."""
