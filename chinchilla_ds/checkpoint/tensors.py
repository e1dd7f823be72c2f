"""The tensors of a checkpoint, carried by torch.distributed.checkpoint (DCP): boxes of whole weights, in global names.

Every rank writes the boxes that it owns into a file of its own; whoever reads asks for other boxes, and DCP finds where
they lie. So a checkpoint knows no layout. A key is `KIND/NAME`: the FP32 weight, and AdamW's two moments.
"""

import dataclasses
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from chinchilla_ds.checkpoint.storage import BlockReader, BlockWriter
from chinchilla_ds.errors import CheckpointError

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (WEIGHT, *MOMENTS)
BLOCK_BYTES = 64 * 2**20
"""Of a block in a file, at most, but for a single row. Bounds the memory that an import takes, which makes a block when
it is written, and that reading some columns takes; still large enough for a disk to be at full speed."""
_METADATA_NAME = ".metadata"
"""DCP's name for the file that says where every box lies."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a tensor of the checkpoint, and the memory to write it from or to read it into."""

    key: str
    full_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor
    """Of the box's shape, FP32; on the device `meta` where `read` returns them."""
    read: Callable[["Block"], Tensor] | None = None
    """Called when the block is written, so that it need not be in memory before, with the block or some rows of it, and
    returns their values; None: `values` are there."""


def row_blocks(block: Block, /) -> Iterator[Block]:
    """Cut a block into blocks of whole rows, of at most BLOCK_BYTES where a row allows it."""
    values = block.values
    rows = max(1, BLOCK_BYTES // (values[0].numel() * values.element_size()))
    for start in range(0, len(values), rows):
        offsets = (block.offsets[0] + start, *block.offsets[1:])
        yield dataclasses.replace(block, offsets=offsets, values=values[start : start + rows])


class _SavePlanner(DefaultSavePlanner):
    """Writes blocks; what two ranks offer is written by one of them."""

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


class _LoadPlanner(DefaultLoadPlanner):
    """Reads blocks from wherever their values lie."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._blocks = {(block.key, block.offsets): block for block in blocks}

    def create_local_plan(self) -> LoadPlan:
        """Ask for every block; all of its values must be there."""
        assert self.metadata is not None
        items: list[ReadItem] = []
        by_key: dict[str, list[Block]] = {}
        for block in self._blocks.values():
            by_key.setdefault(block.key, []).append(block)
        for key, blocks in by_key.items():
            items += _read_items(key, blocks, self.metadata.state_dict_metadata)
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Return the part of a block that is read."""
        offset = read_item.dest_index.offset
        assert offset is not None
        values = self._blocks[read_item.dest_index.fqn, tuple(offset)].values.detach()
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            values = values.narrow(dim, start, length)
        return values

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Do nothing: the values are where they belong."""


def _read_items(key: str, blocks: list[Block], known: Mapping[str, Any]) -> list[ReadItem]:
    stored = known.get(key)
    if not isinstance(stored, TensorStorageMetadata):
        raise CheckpointError(f"the checkpoint has no tensor {key}")
    if tuple(stored.size) != blocks[0].full_shape:
        raise CheckpointError(
            f"tensor {key} is {list(stored.size)} in the checkpoint and {list(blocks[0].full_shape)} in the plan"
        )
    chunks = [ChunkStorageMetadata(offsets=torch.Size(b.offsets), sizes=b.values.size()) for b in blocks]
    items = create_read_items_for_chunk_list(key, stored, chunks)
    found, wanted = sum(item.lengths.numel() for item in items), sum(block.values.numel() for block in blocks)
    if found != wanted:
        raise CheckpointError(f"tensor {key} of the checkpoint is incomplete: {found} of {wanted} values are there")
    return items


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep torch's advice on its own use off the user's screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        yield


def save_blocks(blocks: Iterable[Block], *, folder: Path, group: Any = None, alone: bool = False) -> None:
    """Write the blocks of all ranks below `folder` and flush them to the disk.

    Args:
        blocks: This rank's.
        folder: The same on every rank; on a file system that all share.
        group: Process group whose ranks all call this; it must carry objects on the CPU.
        alone: Whether one process writes everything by itself.
    """
    writer = BlockWriter(folder, overwrite=False)
    planner = _SavePlanner(part for block in blocks for part in row_blocks(block))
    with _without_advice():
        dcp_save({}, storage_writer=writer, planner=planner, process_group=group, no_dist=alone)


def load_blocks(blocks: Iterable[Block], *, folder: Path) -> None:
    """Read the values of blocks; every rank by itself.

    Raises:
        CheckpointError: a tensor is missing, incomplete, or of another shape.
    """
    with _without_advice():
        try:
            dcp_load({}, storage_reader=BlockReader(folder), planner=_LoadPlanner(blocks), no_dist=True)
        except CheckpointException as error:  # DCP's wrapper, no Exception
            raise next(iter(error.failures.values()))[0] from None


def read_metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return what is known of each tensor, by its key."""
    metadata: Metadata = FileSystemReader(folder).read_metadata()
    return cast(dict[str, TensorStorageMetadata], dict(metadata.state_dict_metadata))


def whole_block(key: str, values: Tensor) -> Block:
    """Return a block that is a tensor in full."""
    return Block(key=key, full_shape=tuple(values.shape), offsets=(0,) * values.dim(), values=values)


def join_metadata(folder: Path) -> None:
    """Make one DCP checkpoint of those in the folders below `folder`, whose files stay where they are."""
    joined = Metadata(state_dict_metadata={}, storage_data={})
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        metadata = FileSystemReader(part).read_metadata()
        joined.state_dict_metadata |= metadata.state_dict_metadata
        joined.storage_data |= {
            index: dataclasses.replace(stored, relative_path=f"{part.name}/{stored.relative_path}")
            for index, stored in metadata.storage_data.items()
        }
        (part / _METADATA_NAME).unlink()
    with (folder / _METADATA_NAME).open("wb") as stream:
        pickle.dump(joined, stream)
        stream.flush()
        os.fsync(stream.fileno())
