"""Transparent reading of an export whose weights the vector codec has coded."""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from chinchilla_ds.errors import DataError
from chinchilla_ds.exporting import vector_codec
from chinchilla_ds.exporting.config_json import CONFIG_NAME, QUANT_METHOD, typed
from chinchilla_ds.exporting.shards import ShardReader

_PARTS = (vector_codec.CODES, vector_codec.CODEBOOK, vector_codec.SCALES)
CODED_STEM = "coded"
"""Beginning of the file names; other tools then miss `model.safetensors` instead of loading noise."""


class VectorReader:
    """The tensors of a coded folder, each decoded when it is read."""

    def __init__(self, folder: Path, /, *, codec: vector_codec.Codec) -> None:
        """Read the headers.

        Args:
            folder: A folder that `quantize_folder` wrote.
            codec: The codec that its `config.json` names.

        Raises:
            DataError: files are missing or damaged, or a matrix is coded differently.
        """
        self._reader = ShardReader(folder, stem=CODED_STEM)
        ends = f".{vector_codec.CODES}"
        names = [name.removesuffix(ends) for name in self._reader.names() if name.endswith(ends)]
        self._coded = {name: self._matrix(name, folder=folder, codec=codec) for name in names}

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights."""
        plain = {name for name in self._reader.names() if not name.endswith(tuple(f".{part}" for part in _PARTS))}
        return tuple(sorted(plain | self._coded.keys()))

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return self._coded[name] if name in self._coded else self._reader.shape(name)

    def dtype(self, name: str, /) -> str:
        """Return the type of a weight by its name in safetensors: FP32 if it was coded."""
        return "F32" if name in self._coded else self._reader.dtype(name)

    def read(self, name: str, /, *, rows: slice = slice(None)) -> Tensor:
        """Return a weight, or some of its rows; FP32 if it was coded."""
        if name not in self._coded:
            return self._reader.read(name, rows=rows)
        coded = vector_codec.Coded(
            codes=self._reader.read(f"{name}.{vector_codec.CODES}"),
            codebook=self._reader.read(f"{name}.{vector_codec.CODEBOOK}"),
            scales=self._reader.read(f"{name}.{vector_codec.SCALES}"),
        )
        return vector_codec.decode(coded, shape=self._coded[name])[rows]

    def _matrix(self, name: str, *, folder: Path, codec: vector_codec.Codec) -> tuple[int, int]:
        """Return the shape [o, i] of a coded matrix, after checking the shapes of its parts against it."""
        columns_text, parts = self._reader.metadata.get(f"{name}.columns", ""), [f"{name}.{part}" for part in _PARTS]
        shapes = [self._reader.shape(part) for part in parts if part in self._reader.names()]
        if len(shapes) == len(parts) and re.fullmatch("[1-9][0-9]{0,8}", columns_text):
            rows, columns = math.prod(shapes[2]), int(columns_text)
            wanted = [(codec.code_bytes((rows, columns)),), (codec.codebook_size, codec.dimension), (rows,)]
            types = [self._reader.dtype(part) for part in parts]
            if shapes == wanted and types == ["U8", "F16", "F32"] and codec.can_code((rows, columns)):
                return rows, columns
        raise DataError(f"{folder}: {name} is not coded as {CONFIG_NAME} says; write the export again")


def open_weights(folder: Path, config: dict[str, Any], /) -> ShardReader | VectorReader:
    """Return a reader of the weights of a Hugging Face folder, coded or not.

    Raises:
        DataError: files are missing or damaged.
        ConfigError: `config.json` describes them by values of the wrong types.
    """
    section = typed(config, place=str(folder / CONFIG_NAME)).quantization_config
    if section is None or section.quant_method != QUANT_METHOD:
        return ShardReader(folder)
    size, dimension = section.codebook_size, section.dimension
    if size is None or dimension is None or size.bit_count() != 1:
        raise DataError(f"{folder / CONFIG_NAME}: quantization_config names no dimension, or no power of two as size")
    return VectorReader(folder, codec=vector_codec.Codec(dimension=dimension, codebook_size=size))
