"""Where a flat piece of one rank's part of a weight lies in the whole weight, as boxes.

ZeRO cuts flattened weights anywhere; tensor parallelism cuts rows, each of several runs by itself, or columns
(`weights.Split`). `torch.distributed.checkpoint` knows boxes: an offset and a size per dimension. A flat piece of a
matrix is at most three of them for each run of rows: the end of a row, whole rows, the start of a row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_ds.weights import Split


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows of a rank's part that follow one another in the whole weight."""

    local_start: int
    length: int
    global_start: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A tensor-parallel rank's part of a weight of one or two dimensions."""

    full_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    spans: tuple[Span, ...]
    """All rows of the part, in its order."""
    column_start: int = 0
    """Where the part's columns begin in the whole weight."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of a whole weight, whose values lie together in a flat piece."""

    start: int
    """Offset of its values within the piece."""
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    """Offsets within the whole weight."""

    @property
    def numel(self) -> int:
        """Values in the box."""
        return math.prod(self.sizes)


def cut_of(*, full_shape: Sequence[int], split: Split | None, rank: int, world_size: int) -> Cut:
    """Return the part of tensor-parallel rank `rank` of `world_size`.

    Args:
        full_shape: Shape of the whole weight.
        split: How it is cut; None: every rank has it whole.
        rank: Tensor-parallel rank.
        world_size: Tensor-parallel size.
    """
    full, local = tuple(full_shape), list(full_shape)
    whole = Span(local_start=0, length=full[0], global_start=0)
    if split is None:
        return Cut(full_shape=full, local_shape=full, spans=(whole,))
    local[split.dim] //= world_size
    parts = split.parts(full[split.dim], rank=rank, world_size=world_size)
    if split.dim == 1:
        [columns] = parts
        return Cut(full_shape=full, local_shape=tuple(local), spans=(whole,), column_start=columns.start)
    length = local[0] // split.runs
    spans = (Span(local_start=run * length, length=length, global_start=part.start) for run, part in enumerate(parts))
    return Cut(full_shape=full, local_shape=tuple(local), spans=tuple(spans))


def boxes_of(cut: Cut, *, start: int, numel: int) -> Iterator[Box]:
    """Yield the boxes of values [start, start + numel) of the flattened part, in their order.

    Args:
        cut: a rank's part of a weight.
        start: first value of the piece, within the flattened part.
        numel: number of values.
    """
    width = math.prod(cut.local_shape[1:])
    for span in cut.spans:
        first = max(start, span.local_start * width)
        end = min(start + numel, (span.local_start + span.length) * width)
        at = first
        while at < end:
            row, column = divmod(at, width)
            if column or end - at < width:
                rows, columns = 1, min(width - column, end - at)
            else:
                rows, columns = (end - at) // width, width
            global_row = span.global_start + row - span.local_start
            is_vector = len(cut.full_shape) == 1
            sizes = (rows,) if is_vector else (rows, columns)
            offsets = (global_row,) if is_vector else (global_row, cut.column_start + column)
            yield Box(start=at - start, sizes=sizes, offsets=offsets)
            at += rows * columns
