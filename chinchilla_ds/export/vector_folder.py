"""Reads the weights of an export that the vector codec has coded, as if they had never been."""

from pathlib import Path
from typing import Any

from torch import Tensor

from chinchilla_ds.export import vector_codec
from chinchilla_ds.export.shards import ShardReader

QUANT_METHOD = "chinchilla_ds_vq"
"""Of `quantization_config` in config.json."""
CODED_STEM = "coded"
"""File names begin with it, so that other tools miss `model.safetensors` instead of loading noise."""


class VectorReader:
    """The tensors of a coded folder; each is decoded when it is read."""

    def __init__(self, folder: Path, /) -> None:
        """Read the headers.

        Raises:
            DataError: files are missing or damaged.
        """
        self._reader = ShardReader(folder, stem=CODED_STEM)
        ends = f".{vector_codec.CODES}"
        self._coded = {name.removesuffix(ends) for name in self._reader.names() if name.endswith(ends)}

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights."""
        parts = tuple(f".{part}" for part in (vector_codec.CODES, vector_codec.CODEBOOK, vector_codec.SCALES))
        plain = {name for name in self._reader.names() if not name.endswith(parts)}
        return tuple(sorted(plain | self._coded))

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the shape of a weight."""
        if name not in self._coded:
            return self._reader.shape(name)
        return self._matrix(name)

    def read(self, name: str, /, *, rows: slice = slice(None)) -> Tensor:
        """Return a weight, or some of its rows: FP32 where it was coded."""
        if name not in self._coded:
            return self._reader.read(name, rows=rows)
        coded = vector_codec.Coded(
            codes=self._reader.read(f"{name}.{vector_codec.CODES}"),
            codebook=self._reader.read(f"{name}.{vector_codec.CODEBOOK}"),
            scales=self._reader.read(f"{name}.{vector_codec.SCALES}"),
        )
        return vector_codec.decode(coded, shape=self._matrix(name))[rows]

    def _matrix(self, name: str) -> tuple[int, int]:
        """Return [o, i]: o scales, and as many weights as there are in the codes, of which there are whole rows."""
        (rows,) = self._reader.shape(f"{name}.{vector_codec.SCALES}")
        return rows, int(self._reader.metadata[f"{name}.columns"])


def open_weights(folder: Path, config: dict[str, Any], /) -> ShardReader | VectorReader:
    """Return what reads the weights of a Hugging Face folder, coded or not."""
    coded = (config.get("quantization_config") or {}).get("quant_method") == QUANT_METHOD
    return VectorReader(folder) if coded else ShardReader(folder)
