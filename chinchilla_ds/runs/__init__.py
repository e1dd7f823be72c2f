"""One run from its config to its end: folder, request, text, status."""
