"""The tensors of a checkpoint: boxes of whole weights, in global names.

Every rank writes the boxes that it owns into a file of its own; torch.distributed.checkpoint (DCP) has the ranks agree
on who writes what, and the index records all places. Readers may request other boxes. So a checkpoint does not depend
on a layout.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from chinchilla_ds.checkpoint.index import IndexBuilder, TensorIndex
from chinchilla_ds.checkpoint.storage import (
    FILE_SUFFIX,
    BlockWriter,
    Read,
    read_all,
    reads_of,
    write_index,
    write_values,
)
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.files import sync

BLOCK_BYTES = 64 * 2**20
"""Largest block in a file, except for a single row, bytes. Bounds the memory of an import, which creates a block when
it is written, and of reading some columns; still large enough for a disk's full speed."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a tensor of the checkpoint, and the memory to write it from or to read it into."""

    key: str
    full_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor
    """The values in the box's shape, FP32; on the device `meta` if `read` returns them."""
    read: Callable[["Block"], Tensor] | None = None
    """Called when the block is written, so that it need not be in memory before, with the block or some rows of it, and
    returns their values; None: `values` are there."""


def row_blocks(block: Block, /) -> Iterator[Block]:
    """Split a block into blocks of whole rows, of at most BLOCK_BYTES if a row allows it."""
    values = block.values
    rows = max(1, BLOCK_BYTES // (values[0].numel() * values.element_size()))
    for start in range(0, len(values), rows):
        offsets = (block.offsets[0] + start, *block.offsets[1:])
        yield dataclasses.replace(block, offsets=offsets, values=values[start : start + rows])


class _SavePlanner(DefaultSavePlanner):
    """Writes blocks; a block offered by two ranks is written by one of them."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._blocks = {(block.key, block.offsets): block for block in blocks}

    def create_local_plan(self) -> SavePlan:
        """Offer every block."""
        self.plan = SavePlan([_write_item(block) for block in self._blocks.values()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """Return a block's values."""
        offset = write_item.index.offset
        assert offset is not None
        block = self._blocks[write_item.index.fqn, tuple(offset)]
        return (block.values if block.read is None else block.read(block)).detach()


def _write_item(block: Block) -> WriteItem:
    offsets = torch.Size(block.offsets)
    return WriteItem(
        index=MetadataIndex(block.key, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=block.values.size()),
            properties=TensorProperties(dtype=torch.float32),
            size=torch.Size(block.full_shape),
        ),
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide torch's advice on its own use from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        yield


def save_blocks(blocks: Iterable[Block], *, folder: Path, group: Any) -> None:
    """Write the blocks of all ranks below `folder`, with their index, and flush them to the disk.

    Args:
        blocks: This rank's blocks.
        folder: The same on every rank, on a shared file system.
        group: Process group whose ranks all call this; it must carry objects on the CPU.
    """
    planner = _SavePlanner(part for block in blocks for part in row_blocks(block))
    with _without_advice():
        dcp_save({}, storage_writer=BlockWriter(folder, overwrite=False), planner=planner, process_group=group)


def save_tensors(tensors: Iterable[Block], *, folder: Path) -> None:
    """Write whole tensors from one process, each into its own file, with their index; flush them to the disk.

    Args:
        tensors: Blocks that are tensors in full; one of them is in memory at a time, or some rows of it.
        folder: An existing folder.
    """
    builder = IndexBuilder()
    for number, tensor in enumerate(tensors):
        name = f"{number:06d}{FILE_SUFFIX}"
        with (folder / name).open("wb") as stream:
            for block in row_blocks(tensor):
                builder.add(
                    block.key,
                    shape=block.full_shape,
                    file=name,
                    start=stream.tell(),
                    offsets=block.offsets,
                    sizes=tuple(block.values.shape),
                )
                write_values(stream, block.values if block.read is None else block.read(block))
        sync(folder / name)
    write_index(builder, folder=folder)


def load_blocks(blocks: Iterable[Block], *, index: TensorIndex, folder: Path) -> None:
    """Read the values of blocks; every rank independently.

    Args:
        blocks: Their memory is filled.
        index: Index of the tensors in `folder`.
        folder: Holds the files.

    Raises:
        CheckpointError: a tensor is missing, incomplete, or of another shape; nothing is then read.
    """
    reads: list[Read] = []
    for block in blocks:
        stored = index.tensors.get(block.key)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {block.key}")
        if stored.shape != block.full_shape:
            raise CheckpointError(
                f"tensor {block.key} is {list(stored.shape)} in the checkpoint and {list(block.full_shape)} in the plan"
            )
        of_block = reads_of(stored, files=index.files, offsets=block.offsets, values=block.values)
        there, wanted = sum(read.target.numel() for read in of_block), block.values.numel()
        if there != wanted:
            raise CheckpointError(
                f"tensor {block.key} of the checkpoint is incomplete: {there} of {wanted} values are there"
            )
        reads += of_block
    read_all(reads, folder=folder)


def whole_block(key: str, values: Tensor) -> Block:
    """Return a block that is a whole tensor."""
    return Block(key=key, full_shape=tuple(values.shape), offsets=(0,) * values.dim(), values=values)
