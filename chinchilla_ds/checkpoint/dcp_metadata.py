"""The index of checkpoints of format version 2: torch.distributed.checkpoint's `.metadata`, a pickle that is not run.

Unpickling calls what the pickle names, so a checkpoint from elsewhere could run anything. Here its opcodes are followed
one by one into plain data: only those that such a file has, only the names of its classes, and nothing is imported,
made or called: an object is its class's name, its arguments and its state. Version 3 has JSON instead (`index.py`).
"""

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint.index import FLOAT_BYTES, IndexBuilder, TensorIndex, index_of
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.structured import read_bytes

METADATA_NAME = ".metadata"
_MAX_BYTES = 64 << 20
"""About 150 bytes a block."""

_NAMES = {
    "torch": ("Size", "float32"),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath",),
}
"""The names that torch writes into the file, by module."""
_VALUES = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})
"""Opcodes that push their argument."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Name:
    """A class or a value of torch's, by its name."""

    name: str


@dataclass
class _Object:
    """The object that the pickle would have created."""

    kind: str
    arguments: Any
    state: Any = None


class _Pairs(list[tuple[Any, Any]]):
    """The items of a dict, whose keys may be objects."""


def read_metadata(path: Path, /) -> TensorIndex:
    """Return the index in a `.metadata` file.

    Raises:
        CheckpointError: it cannot be read, holds what torch does not write, or its blocks do not form tensors.
    """
    content = read_bytes(path, what="index of tensors", error=CheckpointError, max_bytes=_MAX_BYTES)
    try:
        data = _data_of(_Unpickling().follow(content))
    except (ValueError, IndexError, KeyError, TypeError) as problem:  # of pickletools, of the stack, of other types
        raise CheckpointError(f"{path} is not an index of tensors as this program wrote them: {problem}") from None
    return index_of(data, where=path)


class _Unpickling:
    """The stack machine of a pickle, without objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        """Stacks that wait below a mark."""
        self.memo: dict[int, Any] = {}

    def follow(self, content: bytes) -> Any:
        """Return the data described by the pickle.

        Raises:
            ValueError: an opcode or a name that torch's metadata does not have.
        """
        for opcode, argument, _ in pickletools.genops(content):
            self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        else:
            raise ValueError(f"the pickle's opcode {opcode} is not read")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("the pickle takes more values than it has")
        at = len(self.stack) - count
        popped, self.stack[at:] = self.stack[at:], []
        return popped

    def _mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        popped, self.stack = self.stack, self.marked.pop()
        return popped

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("the pickle appends to what is not a list")
        self.stack[-1] += items

    def _set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not _Pairs:
            raise ValueError("the pickle sets an item of what is not a dict")
        self.stack[-1] += zip(items[::2], items[1::2], strict=True)

    def _global(self, _: Any) -> None:
        module, name = self._pop(2)
        if _text(name) not in _NAMES.get(_text(module), ()):
            raise ValueError(f"the pickle asks for {f'{module}.{name}'!r:.80}, which is not read")
        self.stack.append(_Name(name))

    def _make(self, _: Any) -> None:
        kind, arguments = self._pop(2)
        if not isinstance(kind, _Name):
            raise ValueError("the pickle calls what is not a class of torch's")
        self.stack.append(_Object(kind.name, arguments))

    def _build(self, _: Any) -> None:
        [state] = self._pop(1)
        if type(self.stack[-1]) is not _Object:
            raise ValueError("the pickle gives a state to what is not an object")
        self.stack[-1].state = state

    def _memoize(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]


_STEPS: dict[str, Any] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _Unpickling._mark,
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push(_Pairs()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "APPEND": lambda machine, _: machine._append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "STACK_GLOBAL": _Unpickling._global,
    "NEWOBJ": _Unpickling._make,
    "REDUCE": _Unpickling._make,
    "BUILD": _Unpickling._build,
    "MEMOIZE": _Unpickling._memoize,
    "BINPUT": _Unpickling._memoize,
    "LONG_BINPUT": _Unpickling._memoize,
    "BINGET": lambda machine, place: machine._push(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine._push(machine.memo[place]),
}


# ---- the described index
# -----------------------------------------------------------------------------------------------


def _data_of(metadata: Any) -> dict[str, Any]:
    """Return the index, as plain data, that the pickle describes.

    Raises:
        ValueError: an object is not what torch has in its place.
        KeyError: a block belongs to no tensor.
    """
    parts = _fields(metadata, "Metadata")
    tensors = {_text(key): _Tensor.of(value) for key, value in _pairs(parts["state_dict_metadata"])}
    builder = IndexBuilder()
    for index, place in _pairs(parts["storage_data"]):
        block, where = _fields(index, "MetadataIndex"), _fields(place, "_StorageInfo")
        key, offsets = _text(block["fqn"]), _numbers(block["offset"])
        sizes, start = tensors[key].blocks[offsets], where["offset"]
        if where.keys() != {"relative_path", "offset", "length"} or where["length"] != FLOAT_BYTES * math.prod(sizes):
            raise ValueError(f"a block of {key!r:.80} is not stored as raw FP32 values")
        file = _text(where["relative_path"])
        builder.add(key, shape=tensors[key].shape, file=file, start=start, offsets=offsets, sizes=sizes)
    return builder.data()


@dataclass(frozen=True)
class _Tensor:
    """A tensor as described by `.metadata`."""

    shape: tuple[int, ...]
    blocks: dict[tuple[int, ...], tuple[int, ...]]
    """Sizes by offsets."""

    @classmethod
    def of(cls, value: Any) -> "_Tensor":
        """Read a TensorStorageMetadata."""
        fields = _fields(value, "TensorStorageMetadata")
        properties = fields["properties"]
        if not (type(properties) is _Object and type(properties.state) is tuple and properties.state):
            raise ValueError("the properties of a tensor are missing")
        dtype = properties.state[0]
        if not (type(dtype) is _Name and dtype.name == "float32"):
            raise ValueError("a tensor is not FP32")
        if type(fields["chunks"]) is not list:
            raise ValueError("the blocks of a tensor are missing")
        chunks = [_fields(chunk, "ChunkStorageMetadata") for chunk in fields["chunks"]]
        blocks = {_numbers(chunk["offsets"]): _numbers(chunk["sizes"]) for chunk in chunks}
        return cls(shape=_numbers(fields["size"]), blocks=blocks)


def _pairs(value: Any) -> _Pairs:
    if type(value) is not _Pairs:
        raise ValueError("a dict is missing")
    return value


def _fields(value: Any, kind: str) -> dict[str, Any]:
    """Return the state of an object of a class, which must be named fields."""
    if type(value) is not _Object or value.kind != kind:
        raise ValueError(f"a {kind} is missing")
    return {_text(key): item for key, item in _pairs(value.state)}


def _text(value: Any) -> str:
    # tuples within tuples would be hashed, as keys, by a function that recurses without limit
    if type(value) is not str:
        raise ValueError("a name is not text")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    """Return the numbers of a torch.Size."""
    if type(value) is not _Object or value.kind != "Size" or type(value.arguments) is not tuple:
        raise ValueError("a shape is missing")
    [numbers] = value.arguments
    if type(numbers) is not tuple or any(type(number) is not int for number in numbers):
        raise ValueError("a shape is not of whole numbers")
    return numbers
