"""Connected components of documents: union-find in a file that is mapped into memory.

The file holds 4 bytes per document (8 from 2^32 documents up), zero for a document without duplicates. Pages in which
no document has a duplicate are never written and take no memory. The others are the one part of deduplication whose
memory grows with the corpus, by at most these bytes per document, which the system can write back.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.exchange import written

CHUNK = 1 << 16
"""Edges, or documents, processed at a time."""


def label_type(num_documents: int, /) -> np.dtype[np.unsignedinteger]:
    """Return the smallest type that holds every ordinal plus one."""
    return np.dtype("<u4") if num_documents < 2**32 - 1 else np.dtype("<u8")


def join(edges: Sequence[Path], /, *, num_documents: int, output: Path) -> None:
    """Write each document's component: the ordinal of its first document plus one, or 0 for a component of one.

    Args:
        edges: Files of pairs of ordinals, int64 [edges, 2]; neither their order nor that of the pairs matters.
        num_documents: Documents of all shards.
        output: Receives `label_type` [num_documents], raw.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    kind = label_type(num_documents)
    with written(output) as aside:
        with aside.open("wb") as file:
            size = max(num_documents, 1) * kind.itemsize
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process when a page is written
                os.posix_fallocate(file.fileno(), 0, size)
        labels = np.memmap(aside, dtype=kind, mode="r+")
        for path in edges:
            pairs = np.load(path, mmap_mode="r")
            for start in range(0, len(pairs), CHUNK):
                _join_pairs(labels, np.array(pairs[start : start + CHUNK]))
        _flatten(labels, aside)
        labels.flush()


def read_labels(path: Path, /, *, first: int, last: int, num_documents: int) -> NDArray[np.int64]:
    """Return the labels of the documents first <= ordinal < last.

    Args:
        path: the file that `join` wrote.
        first: first ordinal.
        last: end of the ordinals, exclusive.
        num_documents: documents of all shards.
    """
    kind = label_type(num_documents)
    return np.fromfile(path, dtype=kind, count=last - first, offset=first * kind.itemsize).astype(np.int64)


def _join_pairs(labels: NDArray[np.unsignedinteger], pairs: NDArray[np.int64]) -> None:
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    nodes, inverse = np.unique(pairs, return_inverse=True)
    new = nodes[labels[nodes] == 0]
    labels[new] = new + 1
    roots, place = np.unique(_roots(labels, nodes), return_inverse=True)
    ends = place[inverse].reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(roots), len(roots)))
    _, component = connected_components(graph, directed=False)
    _, first, of_root = np.unique(component, return_index=True, return_inverse=True)
    smallest = roots[first][of_root]  # roots ascend: the first of a component is its smallest
    labels[roots] = smallest + 1
    labels[nodes] = smallest[place] + 1


def _roots(labels: NDArray[np.unsignedinteger], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    while True:
        parents = labels[nodes].astype(np.int64) - 1
        if np.array_equal(parents, nodes):
            return nodes
        nodes = parents


def _flatten(labels: NDArray[np.unsignedinteger], path: Path) -> None:
    for start in range(0, len(labels), CHUNK):
        block = read_labels(path, first=start, last=min(start + CHUNK, len(labels)), num_documents=len(labels))
        members = start + np.flatnonzero(block)
        if len(members):
            labels[members] = _roots(labels, members) + 1
