"""safetensors files, written and read a few rows at a time, in the layout of Hugging Face folders.

One `model.safetensors`, or `model-00001-of-00003.safetensors` and so on with `model.safetensors.index.json`. A file is
the length of its header, the header in JSON, and the tensors one after another. The format allows a header to end with
spaces: its room is reserved first, and it is filled in once the tensors are written.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from chinchilla_ds.data.named_files import find_named
from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.structured import read_json

STEM = "model"
"""The beginning of file names that Hugging Face's tools expect."""
MAX_SHARD_BYTES = 5 * 1000**3
"""Hugging Face's long-standing default; it fits every machine that can hold a layer of the model."""

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
_SHOWN_NAMES = 3
_HEADER_BYTES_PER_TENSOR = 512
"""Longest entry of a tensor in the header, including its part of the metadata; real ones take 130 to 400 bytes."""


class ShardWriter:
    """Writes tensors one after another, and starts a new file when the next one would not fit.

    A context manager: on exit the files get their final names and, if there are several, an index.
    """

    def __init__(
        self, folder: Path, /, *, num_tensors: int, max_shard_bytes: int = MAX_SHARD_BYTES, stem: str = STEM
    ) -> None:
        """Prepare to write.

        Args:
            folder: An existing folder.
            num_tensors: The most tensors that will be written.
            max_shard_bytes: Largest size of a file, unless a single tensor exceeds it.
            stem: Beginning of the files' names.
        """
        self._folder, self._max_bytes, self._stem = folder, max_shard_bytes, stem
        self._room = num_tensors * _HEADER_BYTES_PER_TENSOR + 4096
        self._metadata: dict[str, str] = {}
        self._headers: list[dict[str, Any]] = []
        self._stream: BinaryIO | None = None
        self._bytes = 0
        self.total_bytes = 0
        """Bytes of all tensors so far."""

    def add(self, name: str, /, *, shape: tuple[int, ...], dtype: torch.dtype, parts: Iterable[Tensor]) -> None:
        """Write a tensor from consecutive parts.

        Args:
            name: The tensor's name.
            shape: The tensor's shape.
            dtype: Type in which it is stored, to which each part is converted.
            parts: Its rows, part by part.
        """
        size = math.prod(shape) * dtype.itemsize
        full = self._bytes and self._bytes + size > self._max_bytes
        if self._stream is None or full or self._bytes % dtype.itemsize:  # readers require aligned tensors
            self._next_file()
        assert self._stream is not None
        start = self._bytes
        for part in parts:
            converted = part.to(dtype).contiguous()
            self._bytes += self._stream.write(converted.view(torch.uint8).numpy().data)
        assert self._bytes - start == size, f"{name} has {self._bytes - start} bytes, and {shape} takes {size}"
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, self._bytes]}
        self._headers[-1][name] = entry
        self.total_bytes += size

    def add_metadata(self, values: Mapping[str, str], /) -> None:
        """Add metadata to the headers of the current file and of later ones."""
        self._metadata |= values

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is None:
            self._finish()
        elif self._stream is not None:
            self._stream.close()

    def _finish(self) -> None:
        self._finish_file()
        count = len(self._headers)
        names = [_shard_name(self._stem, number, count) for number in range(count)]
        for number, name in enumerate(names):
            self._aside(number).rename(self._folder / name)
        if count > 1:
            weight_map = {tensor: name for name, header in zip(names, self._headers, strict=True) for tensor in header}
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self._folder / _index_name(self._stem)).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _aside(self, number: int) -> Path:
        return self._folder / f".shard-{number:05d}"

    def _next_file(self) -> None:
        self._finish_file()
        self._headers.append({})
        self._stream = self._aside(len(self._headers) - 1).open("wb")
        self._stream.write(b"\0" * (8 + self._room))
        self._bytes = 0

    def _finish_file(self) -> None:
        if self._stream is None:
            return
        header = {"__metadata__": {"format": "pt", **self._metadata}, **self._headers[-1]}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= self._room, f"the header takes {len(text)} bytes and has room for {self._room}"
        self._stream.seek(0)
        self._stream.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        self._stream.close()
        self._stream = None


def _shard_name(stem: str, number: int = 0, count: int = 1) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def _index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


class ShardReader:
    """The tensors of a Hugging Face folder, which are read on request and not kept in memory."""

    def __init__(self, folder: Path, /, *, stem: str = STEM, home: Path | None = None) -> None:
        """Read the headers of the files named `stem`.

        Args:
            folder: The folder of the files.
            stem: Beginning of their names.
            home: The folder that links must not leave; None: `folder`.

        Raises:
            DataError: there are no safetensors files, one is missing, outside of `home` or damaged, or two hold the
                same tensor.
        """
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        """Metadata in the headers."""
        for path in _files_of(folder, stem, home=home):
            with _open(path) as opened:
                self.metadata |= opened.metadata() or {}
                for name in tuple(opened.keys()):
                    if name in self._files:
                        raise DataError(
                            f"{folder} holds the tensor {name} twice: {self._files[name].name}, {path.name}"
                        )
                    stored = opened.get_slice(name)
                    self._files[name], self._shapes[name] = path, tuple(stored.get_shape())
                    self._dtypes[name] = stored.get_dtype()

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors."""
        return tuple(sorted(self._files))

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str, /) -> str:
        """Return the type of a tensor by its name in safetensors, such as `BF16`."""
        return self._dtypes[name]

    def read(self, name: str, /, *, rows: slice = slice(None)) -> Tensor:
        """Return a tensor, or some of its rows, in its stored type."""
        with _open(self._files[name]) as opened:
            values: Tensor = opened.get_slice(name)[rows]
            return values.clone()  # a view of the file would keep all of it mapped


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None


def _files_of(folder: Path, stem: str, *, home: Path | None) -> list[Path]:
    """Return the resolved paths of the files: those that the index names, or the only one."""
    index = find_named(folder, _index_name(stem), home=home)
    if index is None:
        if (single := find_named(folder, _shard_name(stem), home=home)) is not None:
            return [single]
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        other = f"; {pickled.name} is a pickle, which is not read: save the model as safetensors" if pickled else ""
        raise DataError(f"{folder} holds neither {_shard_name(stem)} nor {_index_name(stem)}{other}")
    names = _names_in(index, where=folder / index.name)
    places = {name: find_named(folder, name, home=home) for name in sorted(names)}
    if missing := [name for name, path in places.items() if path is None]:
        raise DataError(f"{folder} lacks {_some(missing)}, which {_index_name(stem)} names")
    return [path for path in places.values() if path is not None]


def _names_in(index: Path, *, where: Path) -> set[str]:
    """Return the files that an index names."""
    values = read_json(index, what="the index", error=DataError)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{where} is damaged: it has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise DataError(f"{where} says that {tensor:.80} lies in {name!r:.80}, which is not a safetensors file")
    return set(weight_map.values())


def _some(names: list[str]) -> str:
    """Return the first names, and the number of further ones."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
