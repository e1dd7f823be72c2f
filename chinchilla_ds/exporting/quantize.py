"""Quantisation of an export: int8 and 2:4 by torchao, vectors by our own codec; one weight in memory at a time.

Only the matrices of the layers are quantised; embedding tables and norms are left unchanged, as transformers does.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.exporting import vector_codec
from chinchilla_ds.exporting.config_json import CONFIG_NAME, QUANT_METHOD, read_config
from chinchilla_ds.exporting.shards import STEM, ShardReader, ShardWriter
from chinchilla_ds.exporting.vector_codec import Codec
from chinchilla_ds.exporting.vector_folder import CODED_STEM
from chinchilla_ds.exporting.write import CARD_NAME
from chinchilla_ds.files import new_folder, write_json


class Quantization(StrEnum):
    """How the matrices of the layers are stored."""

    INT8 = "int8"
    """8 bits per weight and a scale per row; transformers loads it with torchao."""
    SPARSE = "2:4"
    """The two smallest of every four neighbours are zero; any tool loads it, sparse tensor cores can make it faster."""
    VECTOR4 = "vq4"
    VECTOR3 = "vq3"
    VECTOR2 = "vq2"
    """The vector codec, at about this many bits per weight."""


CODECS = {
    Quantization.VECTOR4: Codec(dimension=2, codebook_size=256),
    Quantization.VECTOR3: Codec(dimension=2, codebook_size=64),
    Quantization.VECTOR2: Codec(dimension=4, codebook_size=256),
}


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The result of quantisation."""

    folder: Path
    num_bytes: int
    """Bytes of all tensors."""
    source_bytes: int
    """Bytes of all tensors before quantisation."""
    bits_per_weight: float
    """Bits per weight of the quantised matrices, including scales and codebooks."""
    relative_error: float
    """Squared error of those matrices relative to their sum of squares."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """One quantised matrix."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    error: float
    """Squared."""


_Method = Callable[[str, Tensor], _Result]


def quantize_folder(source: Path, /, *, out: Path, method: Quantization) -> Quantized:
    """Write a copy of an export with its matrices quantised.

    Args:
        source: A folder that `export_checkpoint` wrote.
        out: The folder to make.
        method: How the matrices are quantised.

    Raises:
        ConfigError: a package is missing, or the matrices' sizes do not suit the method.
        OutputError: `out` is not empty, or cannot be written.
    """
    check_installed(method)
    apply, section = _method(method)
    reader, config = ShardReader(source), read_config(source)
    names = [name for name in reader.names() if is_matrix(name)]
    if problems := list(_size_problems(reader, names, method=method)):
        raise ConfigError(problems)
    with new_folder(out) as aside:
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns("model*.safetensors*"), dirs_exist_ok=True)
        stem = CODED_STEM if method in CODECS else STEM
        with ShardWriter(aside, num_tensors=4 * len(reader.names()), stem=stem) as writer:
            if method is Quantization.INT8:
                writer.add_metadata(_torchao_metadata(reader.names()))
            totals = _write(reader, writer, apply)
        if section is not None:
            write_json(aside / CONFIG_NAME, {**config, "quantization_config": section})
        result = Quantized(
            folder=out,
            num_bytes=writer.total_bytes,
            source_bytes=totals.source_bytes,
            bits_per_weight=8 * totals.matrix_bytes / totals.weights,
            relative_error=totals.error / totals.squares,
        )
        _add_to_card(aside / CARD_NAME, result, method=method)
    return result


def check_installed(method: Quantization, /) -> None:
    """Check that the packages that quantise and measure are installed.

    Raises:
        ConfigError: a package is missing.
    """
    needed = ("transformers",) if method in CODECS else ("torchao", "transformers")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"`quantize={method.value}` needs {' and '.join(missing)}, which is not installed: "
            "pip install 'chinchilla-ds[quantize]'"
        )


def is_matrix(name: str, /) -> bool:
    """Return whether a weight of Llama is a matrix within a layer."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def _add_to_card(card: Path, result: Quantized, *, method: Quantization) -> None:
    text = card.read_text(encoding="utf-8").rstrip("\n")
    what = (
        f"{method.value}: the matrices of the layers take {result.bits_per_weight:.3f} bits per weight; their squared "
        f"error is {result.relative_error:.3g} of their squares."
    )
    card.write_text(f"{text}\n\n## Quantisation\n\n{what}\n", encoding="utf-8")


@dataclass(kw_only=True)
class _Totals:
    weights: int = 0
    matrix_bytes: int = 0
    source_bytes: int = 0
    error: float = 0.0
    squares: float = 0.0


def _write(reader: ShardReader, writer: ShardWriter, apply: _Method) -> _Totals:
    totals = _Totals()
    for name in reader.names():
        values = reader.read(name)
        totals.source_bytes += values.nbytes
        if not is_matrix(name):
            result = _Result(tensors={name: values}, metadata={}, error=0.0)
        else:
            result = apply(name, values)
            totals.weights += values.numel()
            totals.matrix_bytes += sum(part.nbytes for part in result.tensors.values())
            totals.squares += float(values.float().square().sum())
            totals.error += result.error
        writer.add_metadata(result.metadata)
        for part_name, part in sorted(result.tensors.items(), key=lambda item: -item[1].element_size()):
            writer.add(part_name, shape=tuple(part.shape), dtype=part.dtype, parts=[part])
    return totals


def _method(method: Quantization) -> tuple[_Method, dict[str, Any] | None]:
    """Return the function that quantises a matrix, and the section of config.json that describes it."""
    if method in CODECS:
        codec = CODECS[method]
        section = {"quant_method": QUANT_METHOD, "dimension": codec.dimension, "codebook_size": codec.codebook_size}
        return lambda name, values: _vector(name, values, codec=codec), section
    if method is Quantization.SPARSE:
        return _sparse, None
    return _int8, _int8_section()


def _size_problems(reader: ShardReader, names: list[str], *, method: Quantization) -> Iterator[str]:
    unit = 4 if method is Quantization.SPARSE else CODECS[method].dimension if method in CODECS else 1
    for name in names:
        if (columns := reader.shape(name)[1]) % unit:
            yield f"`quantize={method.value}` groups {unit} neighbours, and {name} has {columns} columns"


def _vector(name: str, values: Tensor, *, codec: Codec) -> _Result:
    weight = values.float()
    coded = vector_codec.encode(weight, codec=codec)
    error = float((vector_codec.decode(coded, shape=(weight.shape[0], weight.shape[1])) - weight).square().sum())
    tensors = {
        f"{name}.{vector_codec.CODES}": coded.codes,
        f"{name}.{vector_codec.CODEBOOK}": coded.codebook,
        f"{name}.{vector_codec.SCALES}": coded.scales,
    }
    return _Result(tensors=tensors, metadata={f"{name}.columns": str(weight.shape[1])}, error=error)


def _linear(values: Tensor) -> nn.Linear:
    layer = nn.Linear(values.shape[1], values.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(values, requires_grad=False)
    return layer


def _int8_section() -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    section: dict[str, Any] = TorchAoConfig(Int8WeightOnlyConfig()).to_dict()
    return section


def _torchao_metadata(names: Sequence[str]) -> dict[str, str]:
    """Return the header metadata that torchao's reader expects for int8 matrices: all names, and the plain ones."""
    plain = {name: json.dumps({"_type": "Tensor"}) for name in names if not is_matrix(name)}
    return {"tensor_names": json.dumps(list(names)), **plain}


def _int8(name: str, values: Tensor) -> _Result:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = _linear(values)
    quantize_(layer, Int8WeightOnlyConfig())
    stored: Any = layer.weight  # a tensor subclass of torchao
    error = float((stored.dequantize().float() - values.float()).square().sum())
    tensors, metadata = flatten_tensor_state_dict({name: stored})
    return _Result(tensors=tensors, metadata={name: metadata[name]}, error=error)


def _sparse(name: str, values: Tensor) -> _Result:
    from torchao.sparsity import apply_fake_sparsity

    layer = _linear(values.float().clone())
    apply_fake_sparsity(nn.Sequential(layer))
    pruned = layer.weight.detach().to(values.dtype)
    error = float((pruned.float() - values.float()).square().sum())
    return _Result(tensors={name: pruned}, metadata={}, error=error)
