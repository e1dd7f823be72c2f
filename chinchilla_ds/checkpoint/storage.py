"""Layout of blocks in a checkpoint's files: raw, one after another, instead of torch.save's archive for each of them.

A block is its FP32 values in row-major order and in the machine's byte order (little-endian where torch runs). Rows are
read into the memory that wants them, without a copy, and nothing but the rows that are wanted. torch's own format costs
a checksum and a copy of every block, and reads blocks as a whole. The whole file has its hash in the manifest. The
places of the blocks are in the index (`index.py`).

torch.distributed.checkpoint (DCP) plans what each rank writes; this is the end that touches files. Its own writer
leaves a pickle for an index, and its reader runs one, so neither is used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from chinchilla_ds.checkpoint.index import FLOAT_BYTES, INDEX_NAME, IndexBuilder, StoredTensor
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.files import sync, write_durably

FILE_SUFFIX = ".distcp"


def _as_bytes(values: Tensor) -> memoryview:
    """Return the memory of a contiguous FP32 tensor on the CPU."""
    return values.numpy().data.cast("B")


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_values(stream: IO[bytes], values: Tensor) -> int:
    """Write a block's values to a file; one on a GPU comes to the host. Return how many bytes they take."""
    assert values.dtype == torch.float32
    data = _as_bytes(values.detach().cpu().contiguous())
    stream.write(data)
    return data.nbytes


def write_index(builder: IndexBuilder, *, folder: Path) -> None:
    """Write the index of the blocks in a folder's files and flush it to the disk."""
    write_durably(folder / INDEX_NAME, builder.to_json())


class BlockWriter(FileSystemWriter):
    """Writes a rank's blocks into one file, and on one rank the index of all."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write all of a rank's blocks, one by one."""
        results: list[WriteResult] = []
        if plan.items:
            name = f"{plan.storage_data.prefix}0{FILE_SUFFIX}"
            path = Path(self.path, name)
            with path.open("wb") as stream:
                for item in plan.items:
                    values, start = planner.resolve_data(item), stream.tell()
                    assert isinstance(values, Tensor)
                    length = write_values(stream, values)
                    info = _StorageInfo(name, start, length)
                    results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=info))
            sync(path)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index of what all ranks have written."""
        builder = IndexBuilder()
        for result in (result for of_rank in results for result in of_rank):
            key, chunk = result.index.fqn, result.index.index
            tensor, info = metadata.state_dict_metadata[key], result.storage_data
            assert isinstance(tensor, TensorStorageMetadata)
            assert chunk is not None
            box = tensor.chunks[chunk]
            builder.add(
                key,
                shape=tensor.size,
                file=info.relative_path,
                start=info.offset,
                offsets=box.offsets,
                sizes=box.sizes,
            )
        write_index(builder, folder=Path(self.path))


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Read:
    """Part of a stored block to read."""

    file: str
    start: int
    """Offset of the block in the file, bytes."""
    sizes: tuple[int, ...]
    """Shape of the block."""
    first: tuple[int, ...]
    """Offsets of the part within the block."""
    target: Tensor
    """Memory for it, of the part's shape."""


def reads_of(stored: StoredTensor, *, files: Sequence[str], offsets: Sequence[int], values: Tensor) -> list[Read]:
    """Return what must be read to fill a box of a tensor.

    Args:
        stored: The tensor's blocks.
        files: Names of the index's files.
        offsets: Offsets of the box within the tensor.
        values: Memory of the box's shape.
    """
    begin = np.maximum(stored.block_offsets, np.array(offsets))
    end = np.minimum(stored.block_offsets + stored.block_sizes, np.array(offsets) + np.array(values.shape))
    reads = []
    for block in np.flatnonzero((begin < end).all(axis=1)).tolist():
        target = values.detach()
        for dim, (first, last) in enumerate(zip(begin[block].tolist(), end[block].tolist(), strict=True)):
            target = target.narrow(dim, first - offsets[dim], last - first)
        reads.append(
            Read(
                file=files[stored.file_numbers[block]],
                start=stored.starts[block],
                sizes=tuple(stored.block_sizes[block].tolist()),
                first=tuple((begin[block] - stored.block_offsets[block]).tolist()),
                target=target,
            )
        )
    return reads


def read_all(reads: Iterable[Read], *, folder: Path) -> None:
    """Read everything requested, file by file and in the order of the file.

    Raises:
        CheckpointError: a file ends before its blocks do.
    """
    by_file: dict[str, list[Read]] = {}
    for read in reads:
        by_file.setdefault(read.file, []).append(read)
    for name, of_file in by_file.items():
        with (folder / name).open("rb", buffering=0) as stream:
            for read in sorted(of_file, key=lambda read: read.start):
                _read(stream, read)


def _read(stream: IO[bytes], read: Read) -> None:
    """Read whole rows of a block, and keep the requested columns."""
    target = read.target
    start, *before = read.first
    width = int(np.prod(read.sizes[1:], dtype=np.int64))
    stream.seek(read.start + start * FLOAT_BYTES * width)
    rows = (len(target), *read.sizes[1:])
    if rows == tuple(target.shape) and target.is_contiguous() and target.device.type == "cpu":
        _fill(stream, target)
        return
    values = torch.empty(rows)
    _fill(stream, values)
    for dim, first in enumerate(before, start=1):
        values = values.narrow(dim, first, target.shape[dim])
    target.copy_(values)


def _fill(stream: IO[bytes], values: Tensor) -> None:
    """Fill a tensor with the next bytes of a file."""
    left = _as_bytes(values)
    while left:
        taken = stream.readinto(left)  # type: ignore[attr-defined]
        if not taken:
            raise CheckpointError(f"{stream.name} ends {len(left)} bytes before its last block does")
        left = left[taken:]
