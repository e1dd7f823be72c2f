"""Where a loss or gradient that is no number came from: what each rank saw first, kept on the device until it is asked.

Two sums per micro-batch, in fp32: of the stage's output, and of the gradient of the norm weight nearest to its input,
which everything that is no number in a backward pass flows into. A step costs no wait for the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.model.decoder import PipelineStage

_NOWHERE = -1


@dataclass(frozen=True, kw_only=True)
class FirstBad:
    """What one rank saw of a step, as indices of its micro-batches; None where all were numbers."""

    forward: int | None
    """The first whose output, or loss, is no number."""
    backward: int | None
    """The first whose gradient is none."""


class NonFiniteWatch:
    """Watches one rank's stage."""

    def __init__(self, stage: PipelineStage) -> None:
        self._outputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        stage.register_forward_hook(self._see_output, with_kwargs=True)
        self._last_chunk = len(stage.decoders) - 1
        first_norm: nn.Parameter = stage.decoders[0].decoder.layers[0].input_layernorm.weight
        first_norm.register_hook(self._see_gradient)

    def start_step(self) -> None:
        """Forget the last step."""
        self._outputs.clear()
        self._gradients.clear()

    def of_all_ranks(self) -> list[FirstBad]:
        """Return what every rank saw, by global rank; every rank calls this."""
        own = torch.tensor([_first(self._outputs), _first(self._gradients)], device=cpu_backend.device())
        seen = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(seen, own)
        numbers = [[None if index == _NOWHERE else int(index) for index in one.tolist()] for one in seen]
        return [FirstBad(forward=forward, backward=backward) for forward, backward in numbers]

    def _see_output(self, stage: nn.Module, _args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        if stage.training and torch.is_grad_enabled() and kwargs.get("chunk", 0) == self._last_chunk:
            self._outputs.append(output.detach().sum(dtype=torch.float32))

    def _see_gradient(self, gradient: Tensor) -> None:
        self._gradients.append(gradient.detach().sum(dtype=torch.float32))


def _first(sums: list[Tensor]) -> int:
    bad = [index for index, value in enumerate(sums) if not torch.isfinite(value)]
    return bad[0] if bad else _NOWHERE
