"""Load the weights of a checkpoint into a decoder: tensor by tensor, each rank reading only its own part."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from chinchilla_ds.inference.decoder import InferenceDecoder
from chinchilla_ds.inference.ranks import ModelRanks
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.weights import TABLE, Split, WeightKind


class WeightReader(Protocol):
    """The methods of `checkpoint.reader.CheckpointReader` that loading needs."""

    @property
    def plan(self) -> RunPlan:
        """The plan of the trained model."""

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the full shape of a weight under Megatron's name."""

    def read(self, name: str, /) -> Tensor:
        """Return the full weight, fp32, on the CPU."""

    def read_rows(self, name: str, /, *, rows: slice) -> Tensor:
        """Return some rows of a weight: a slice along dimension 0."""


def load_decoder(
    reader: WeightReader,
    *,
    ranks: ModelRanks,
    eod_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> InferenceDecoder:
    """Return this rank's stage of the decoder, with its weights.

    Args:
        reader: The checkpoint.
        ranks: The layout for inference.
        eod_id: The end-of-document token.
        dtype: Type of weights and activations.
        device: Where the weights go; None: the CPU.

    Raises:
        LayoutError: the layout cannot divide this shape.
    """
    decoder = InferenceDecoder(reader.plan, ranks=ranks, eod_id=eod_id, dtype=dtype).eval()
    for holder, kind, name in _wanted(decoder):
        part = _read_part(reader, name, split=kind.split, ranks=ranks)
        weight = part.to(device=device, dtype=dtype).contiguous()
        assert weight.shape == getattr(holder, kind.attribute).shape, f"{name}: {tuple(weight.shape)}"
        setattr(holder, kind.attribute, nn.Parameter(weight, requires_grad=False))
    return decoder


def _wanted(decoder: InferenceDecoder) -> Iterator[tuple[nn.Module, WeightKind, str]]:
    """Yield the module, the row of the table and Megatron's name of each weight of this stage."""
    numbers = decoder.ranks.layers_of_stage(decoder.shape)
    layers: list[tuple[int, nn.Module]] = list(zip(numbers, decoder.layers, strict=True))
    for kind in TABLE:
        for layer, holder in layers if kind.in_layers else [(0, decoder)]:
            if getattr(holder, kind.attribute) is not None:
                yield holder, kind, kind.full_name(layer)


def _read_part(reader: WeightReader, name: str, *, split: Split | None, ranks: ModelRanks) -> Tensor:
    """Return this tensor-parallel rank's part."""
    if split is None or ranks.tp_size == 1:
        return reader.read(name)
    parts = split.parts(reader.shape(name)[split.dim], rank=ranks.tp_rank, world_size=ranks.tp_size)
    if split.dim == 0:
        return torch.cat([reader.read_rows(name, rows=rows) for rows in parts])
    whole = reader.read(name)
    return torch.cat([whole[:, columns] for columns in parts], dim=1)
