"""How blocks lie in a checkpoint's files: raw, one after another, in place of torch.save's archive for each of them.

torch.distributed.checkpoint (DCP) plans what is written and read, and keeps the list of boxes; these are the two ends
that touch files. A block is its FP32 values in row-major order and in the machine's byte order (little-endian where
torch runs). Rows are read into the memory that wants them, without a copy, and nothing but the rows that are wanted.
torch's own format costs a checksum and a copy of every block, and reads blocks as a whole. The whole file has its hash
in the manifest.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from chinchilla_ds.errors import CheckpointError

_FLOAT_BYTES = 4


def _as_bytes(values: Tensor) -> memoryview:
    """Return the memory of a contiguous FP32 tensor on the CPU."""
    return values.numpy().data.cast("B")


class BlockWriter(FileSystemWriter):
    """Writes a rank's blocks into one file, and flushes it to the disk."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write all of a rank's blocks; those on a GPU come to the host one by one."""
        results: list[WriteResult] = []
        if plan.items:
            name = f"{plan.storage_data.prefix}0.distcp"
            with Path(self.path, name).open("wb") as stream:
                for item in plan.items:
                    values = planner.resolve_data(item)
                    assert isinstance(values, Tensor)
                    assert values.dtype == torch.float32
                    data = _as_bytes(values.detach().cpu().contiguous())
                    info = _StorageInfo(name, stream.tell(), data.nbytes)
                    stream.write(data)
                    results.append(WriteResult(index=item.index, size_in_bytes=data.nbytes, storage_data=info))
                stream.flush()
                os.fsync(stream.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future


class BlockReader(FileSystemReader):
    """Reads rows of blocks."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Note where every block lies, and its shape."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._sizes = {
            (key, tuple(chunk.offsets)): tuple(chunk.sizes)
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
            for chunk in stored.chunks
        }

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Read everything that is asked for, file by file and in the order of the file.

        Raises:
            CheckpointError: a file ends before its blocks do.
        """
        by_file: dict[str, list[tuple[int, ReadItem]]] = {}
        for item in plan.items:
            info = self.storage_data[item.storage_index]
            by_file.setdefault(info.relative_path, []).append((info.offset, item))
        for name, items in by_file.items():
            with Path(self.path, name).open("rb", buffering=0) as stream:
                for offset, item in sorted(items, key=lambda pair: pair[0]):
                    index = item.storage_index
                    assert index.offset is not None
                    _read(
                        stream,
                        at=offset,
                        sizes=self._sizes[index.fqn, tuple(index.offset)],
                        item=item,
                        target=planner.resolve_tensor(item),
                    )
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _read(stream: IO[bytes], *, at: int, sizes: Sequence[int], item: ReadItem, target: Tensor) -> None:
    """Read part of a block.

    Args:
        stream: The file.
        at: Where the block begins in it.
        sizes: The block's shape.
        item: Which part of the block is read.
        target: Of the part's shape.
    """
    start, *before = item.storage_offsets
    row_bytes = _FLOAT_BYTES * math.prod(sizes[1:])
    stream.seek(at + start * row_bytes)
    rows = tuple(item.lengths) if tuple(item.lengths[1:]) == tuple(sizes[1:]) else (item.lengths[0], *sizes[1:])
    if rows == tuple(target.shape) and target.is_contiguous() and target.device.type == "cpu":
        _fill(stream, target.detach())
        return
    values = torch.empty(rows)
    _fill(stream, values)
    for dim, first in enumerate(before, start=1):
        values = values.narrow(dim, first, item.lengths[dim])
    target.copy_(values)


def _fill(stream: IO[bytes], values: Tensor) -> None:
    """Fill a tensor with what comes next in a file."""
    left = _as_bytes(values)
    while left:
        taken = stream.readinto(left)  # type: ignore[attr-defined]
        if not taken:
            raise CheckpointError(f"{stream.name} ends {len(left)} bytes before its last block does")
        left = left[taken:]
