"""Weights from a checkpoint into a decoder, each rank reading its own part of one tensor after the other."""

from typing import Protocol

import torch
from torch import Tensor, nn

from chinchilla_ds.inference.decoder import InferenceDecoder
from chinchilla_ds.inference.ranks import ModelRanks
from chinchilla_ds.run_plan import RunPlan

_SPLIT_BY_ROWS = ("linear_qkv.weight", "word_embeddings.weight", "output_layer.weight")
_SPLIT_BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


class WeightReader(Protocol):
    """What is asked of a `checkpoint.reader.CheckpointReader`."""

    @property
    def plan(self) -> RunPlan:
        """The plan that was trained."""

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the full shape of a weight under Megatron's name."""

    def read(self, name: str, /) -> Tensor:
        """Return the full weight, fp32, on the CPU."""

    def read_rows(self, name: str, /, *, rows: slice) -> Tensor:
        """Return a part of it along dimension 0."""


def load_decoder(
    reader: WeightReader,
    *,
    ranks: ModelRanks,
    eod_id: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> InferenceDecoder:
    """Return this rank's stage of the decoder, with its weights.

    Raises:
        LayoutError: the layout cannot cut this shape.
    """
    decoder = InferenceDecoder(reader.plan, ranks=ranks, eod_id=eod_id, dtype=dtype).eval()
    for holder, attribute, name in _wanted(decoder):
        part = _read_part(reader, name, ranks=ranks)
        weight = part.to(device=device, dtype=dtype).contiguous()
        assert weight.shape == getattr(holder, attribute).shape, f"{name}: {tuple(weight.shape)}"
        setattr(holder, attribute, nn.Parameter(weight, requires_grad=False))
    return decoder


def _wanted(decoder: InferenceDecoder) -> list[tuple[nn.Module, str, str]]:
    """Return module, attribute and Megatron's name of every weight of this stage."""
    found: list[tuple[nn.Module, str, str]] = []
    if decoder.embedding is not None:
        found.append((decoder, "embedding", "embedding.word_embeddings.weight"))
    first = decoder.ranks.pp_rank * len(decoder.layers)
    for index, layer in enumerate(decoder.layers):
        prefix = f"decoder.layers.{first + index}."
        found += [
            (layer, attribute, f"{prefix}{part}{attribute}.weight")
            for attribute, part in (
                ("input_layernorm", ""),
                ("linear_qkv", "self_attention."),
                ("linear_proj", "self_attention."),
                ("pre_mlp_layernorm", ""),
                ("linear_fc1", "mlp."),
                ("linear_fc2", "mlp."),
            )
        ]
    if decoder.final_layernorm is not None:
        found.append((decoder, "final_layernorm", "decoder.final_layernorm.weight"))
    if decoder.output_layer is not None:
        found.append((decoder, "output_layer", "output_layer.weight"))
    return found


def _read_part(reader: WeightReader, name: str, *, ranks: ModelRanks) -> Tensor:
    """Return this tensor-parallel rank's part, as `model.initialization.cut_for_tensor_parallel_rank` cuts it."""
    if ranks.tp_size == 1:
        return reader.read(name)
    rank, size = ranks.tp_rank, ranks.tp_size
    if name.endswith(_SPLIT_BY_ROWS):
        rows = reader.shape(name)[0] // size
        return reader.read_rows(name, rows=slice(rank * rows, (rank + 1) * rows))
    if name.endswith("linear_fc1.weight"):  # [gate; up], and this rank needs [its gate; its up]
        half = reader.shape(name)[0] // 2
        rows = half // size
        starts = (rank * rows, half + rank * rows)
        return torch.cat([reader.read_rows(name, rows=slice(start, start + rows)) for start in starts])
    if name.endswith(_SPLIT_BY_COLUMNS):
        return reader.read(name).chunk(size, dim=1)[rank]
    return reader.read(name)
