"""Deduplication: MinHash bands, and on disk the connected components of documents that share one."""
