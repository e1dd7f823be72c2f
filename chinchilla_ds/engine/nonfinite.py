"""The origin of a non-finite loss or gradient: what each rank saw first, kept on the device until needed.

Two sums per micro-batch and model chunk, in fp32: of the chunk's output, and of the gradient of the norm weight nearest
to its input, into which every non-finite value of a backward pass flows. It does not synchronise with the device.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.model.decoder import PipelineStage

_NOWHERE = -1


class NonFinitePlace(NamedTuple):
    """Where a rank saw non-finite values."""

    chunk: int
    """Model chunk of the rank; 0 except under interleaved schedules."""
    micro_batch: int
    """The first of the rank's micro-batches in which it saw them there."""


@dataclass(frozen=True, kw_only=True)
class FirstBad:
    """What one rank saw of a step; None if all values were finite."""

    forward: NonFinitePlace | None
    """The first chunk with a non-finite output or loss."""
    backward: NonFinitePlace | None
    """The first chunk, in the order of the backward pass, with a non-finite gradient."""


class NonFiniteWatch:
    """Watches one rank's stage."""

    def __init__(self, stage: PipelineStage) -> None:
        self._outputs: dict[int, list[Tensor]] = defaultdict(list)
        self._gradients: dict[int, list[Tensor]] = defaultdict(list)
        stage.register_forward_hook(self._see_output, with_kwargs=True)
        for chunk, decoder in enumerate(stage.decoders):
            first_norm: nn.Parameter = decoder.decoder.layers[0].input_layernorm.weight
            first_norm.register_hook(partial(self._see_gradient, chunk))

    def start_step(self) -> None:
        """Forget the last step."""
        self._outputs.clear()
        self._gradients.clear()

    def of_all_ranks(self) -> list[FirstBad]:
        """Return what every rank saw, by global rank; every rank calls this."""
        forward = _first(self._outputs, order=sorted(self._outputs))
        backward = _first(self._gradients, order=sorted(self._gradients, reverse=True))
        own = torch.tensor([*forward, *backward], device=cpu_backend.device())
        seen = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(seen, own)
        rows = [of_rank.tolist() for of_rank in seen]
        return [FirstBad(forward=_place(*row[:2]), backward=_place(*row[2:])) for row in rows]

    def _see_output(self, stage: nn.Module, _args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        if stage.training and torch.is_grad_enabled():
            self._outputs[kwargs.get("chunk", 0)].append(output.detach().sum(dtype=torch.float32))

    def _see_gradient(self, chunk: int, gradient: Tensor) -> None:
        self._gradients[chunk].append(gradient.detach().sum(dtype=torch.float32))


def _first(sums: Mapping[int, list[Tensor]], *, order: Iterable[int]) -> NonFinitePlace:
    for chunk in order:
        for micro_batch, value in enumerate(sums[chunk]):
            if not torch.isfinite(value):
                return NonFinitePlace(chunk, micro_batch)
    return NonFinitePlace(_NOWHERE, _NOWHERE)


def _place(chunk: int, micro_batch: int) -> NonFinitePlace | None:
    return None if chunk == _NOWHERE else NonFinitePlace(chunk, micro_batch)
