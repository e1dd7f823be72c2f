"""Where the values of every tensor lie in a checkpoint's files: `tensors/index.json`. Nothing here imports torch.

A tensor is stored as blocks: boxes of it, each raw in one place of one file. Its columns have an entry for every block,
offsets and sizes one for every dimension of every block. A key is `KIND/NAME`: the FP32 weight, and the
optimizer's states by their names.

An index may come from elsewhere. What is read here has blocks within their tensors, as many values as the tensors have,
and names of tensors and files that lead nowhere else; `check_files` adds that every block has bytes of its own in a
file of the checkpoint. So what is read takes no more memory than the files take on the disk.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.ranges import Ge, Le
from chinchilla_ds.structured import build, parse_json, read_bytes

INDEX_NAME = "index.json"
WEIGHT = "weight"
FLOAT_BYTES = 4
MAX_INDEX_BYTES = 4 << 30
"""About 30 bytes a block: 70B parameters under ZeRO-3 over 1,024 ranks take 0.1 GiB."""
_LARGEST = 2**48
_KEY = re.compile(r"\w+/\w+(?:\.\w+)*", re.ASCII)
_FILE = re.compile(r"(?:\w+/)?\w+\.distcp", re.ASCII)

Place = Annotated[int, Ge(0), Le(_LARGEST)]
Size = Annotated[int, Ge(1), Le(_LARGEST)]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of one or two dimensions, and its blocks."""

    shape: tuple[Size, ...]
    file_numbers: tuple[Place, ...]
    """Index of each block's file in the list of files."""
    starts: tuple[Place, ...]
    """Offset of each block within its file, bytes."""
    offsets: tuple[Place, ...]
    """Offsets of each block within the tensor."""
    sizes: tuple[Size, ...]
    """Shape of each block."""

    def __post_init__(self) -> None:
        """Check that the blocks fill the tensor.

        Raises:
            ValueError: columns of different lengths, a block outside the tensor, another number of values.
        """
        dims, blocks = len(self.shape), len(self.file_numbers)
        if dims not in (1, 2):
            raise ValueError(f"the shape has {dims} dimensions; weights have one or two")
        if self.numel > _LARGEST:
            raise ValueError(f"the shape {list(self.shape)} has {self.numel} values; at most {_LARGEST} are read")
        lengths = len(self.starts), len(self.offsets), len(self.sizes)
        if lengths != (blocks, blocks * dims, blocks * dims):
            raise ValueError(f"file_numbers has {blocks} entries, starts, offsets and sizes have {lengths}")
        if (self.block_offsets + self.block_sizes > np.array(self.shape)).any():
            raise ValueError(f"a block reaches out of the shape {list(self.shape)}")
        covered, wanted = sum(map(math.prod, self.block_sizes.tolist())), self.numel
        if covered != wanted:
            raise ValueError(f"its blocks hold {covered} values, and the shape {list(self.shape)} has {wanted}")

    @property
    def numel(self) -> int:
        """Values of the tensor."""
        return math.prod(self.shape)

    @functools.cached_property
    def block_offsets(self) -> NDArray[np.int64]:
        """[blocks, dimensions]."""
        return np.array(self.offsets, dtype=np.int64).reshape(-1, len(self.shape))

    @functools.cached_property
    def block_sizes(self) -> NDArray[np.int64]:
        """[blocks, dimensions]."""
        return np.array(self.sizes, dtype=np.int64).reshape(-1, len(self.shape))


@dataclass(frozen=True, kw_only=True)
class TensorIndex:
    """All tensors of a checkpoint, by their keys."""

    files: tuple[str, ...]
    """Names of the files, within the folder of the index."""
    tensors: dict[str, StoredTensor]

    def __post_init__(self) -> None:
        """Check names.

        Raises:
            ValueError: a file elsewhere, a tensor that is not one of a decoder's, or a block in no file.
        """
        if bad := [name for name in self.files if not _FILE.fullmatch(name)]:
            raise ValueError(f"{_shown(bad[0])} is not the name of a file with tensors")
        if unknown := [key for key in self.tensors if not _KEY.fullmatch(key)]:
            raise ValueError(f"{_shown(unknown[0])} is not the name of a tensor, such as weight/output_layer.weight")
        for key, tensor in self.tensors.items():
            if max(tensor.file_numbers) >= len(self.files):
                raise ValueError(f"{key} lies in file {max(tensor.file_numbers)} of {len(self.files)}")

    def check_kinds(self, states: Sequence[str], /) -> None:
        """Check that there are only weights and the optimizer's states.

        Args:
            states: Names of the optimizer's states.

        Raises:
            ValueError: a tensor is neither.
        """
        kinds = {WEIGHT, *states}
        if unknown := [key for key in self.tensors if key.partition("/")[0] not in kinds]:
            raise ValueError(
                f"{_shown(unknown[0])} is not the name of a tensor: its plan's optimizer keeps "
                f"{', '.join(states) or 'nothing'} beside the weight"
            )

    def check_files(self, sizes: Mapping[str, int], /) -> None:
        """Check that every block has its own bytes within its file.

        Args:
            sizes: Sizes of the existing files, bytes.

        Raises:
            ValueError: a file is missing or ends before its last block, or two blocks lie over one another.
        """
        if missing := [name for name in self.files if name not in sizes]:
            raise ValueError(f"{missing[0]} is not among the checkpoint's files")
        if not self.tensors:
            return
        stored = self.tensors.values()
        file = np.concatenate([np.array(tensor.file_numbers, dtype=np.int64) for tensor in stored])
        start = np.concatenate([np.array(tensor.starts, dtype=np.int64) for tensor in stored])
        end = start + FLOAT_BYTES * np.concatenate([tensor.block_sizes.prod(axis=1) for tensor in stored])
        beyond = end > np.array([sizes[name] for name in self.files], dtype=np.int64)[file]
        if beyond.any():
            name = self.files[int(file[beyond.argmax()])]
            raise ValueError(f"{name} has {sizes[name]} bytes and ends before its last block does")
        order = np.lexsort((start, file))
        file, start, end = file[order], start[order], end[order]
        shared = (file[1:] == file[:-1]) & (start[1:] < end[:-1])
        if shared.any():
            raise ValueError(f"two blocks lie over one another in {self.files[int(file[shared.argmax()])]}")


class IndexBuilder:
    """Collects blocks as they are written, or found in an index of another format."""

    def __init__(self) -> None:
        self._file_numbers: dict[str, int] = {}
        self._tensors: dict[str, dict[str, list[Any]]] = {}

    def add(
        self, key: str, *, shape: Sequence[int], file: str, start: int, offsets: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Add a block.

        Args:
            key: Key of its tensor.
            shape: Shape of its tensor.
            file: Its name within the folder of the index.
            start: Offset of the block within the file, bytes.
            offsets: Offsets of the block within the tensor.
            sizes: Shape of the block.
        """
        tensor = self._tensors.setdefault(key, {"file_numbers": [], "starts": [], "offsets": [], "sizes": []})
        tensor["shape"] = list(shape)
        tensor["file_numbers"].append(self._file_numbers.setdefault(file, len(self._file_numbers)))
        tensor["starts"].append(start)
        tensor["offsets"] += offsets
        tensor["sizes"] += sizes

    def data(self) -> dict[str, Any]:
        """Return an index as plain data, in the form of its JSON."""
        return {"files": list(self._file_numbers), "tensors": self._tensors}

    def to_json(self) -> str:
        """Return the JSON that `read_index` reads."""
        return json.dumps(self.data(), separators=(",", ":"))


def read_index(path: Path, /) -> TensorIndex:
    """Return the index in a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not an index; the first problem is reported.
    """
    what = "index of tensors"
    content = read_bytes(path, what=what, error=CheckpointError, max_bytes=MAX_INDEX_BYTES)
    return index_of(parse_json(content, where=f"{what} {path}", error=CheckpointError), where=path)


def index_of(data: Any, *, where: Path) -> TensorIndex:
    """Return the index in plain data.

    Args:
        data: In the form of the JSON.
        where: The file that it comes from.

    Raises:
        CheckpointError: it is not an index; the first problem is reported.
    """
    try:
        index: TensorIndex = build(TensorIndex, data, where="index", error=CheckpointError)
    except CheckpointError as error:
        more = f" (and {len(error.problems) - 1} more problems)" if len(error.problems) > 1 else ""
        raise CheckpointError(f"{where}: {error.problems[0]}{more}") from None
    return index


def _shown(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."
