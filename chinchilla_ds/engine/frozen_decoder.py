"""A decoder that is not trained, split like the trained one: the companion of an objective, such as a teacher.

It runs beside the trained decoder, one micro-batch after the other; its logits are available where the loss is
computed. Between pipeline stages the two hidden states travel as one tensor, [s, b, h + h of the companion]; megatron's
interleaved schedules support only the model's width, and there its passes precede the step.

Shapes, TP-local: s sequence, b micro-batch, h hidden, v padded vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.distributed.mpu import Mpu
from chinchilla_ds.errors import ConfigError, LayoutError
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.objective import LabelledTokens
from chinchilla_ds.run_plan import Recompute, RunPlan


def companion_plan(plan: RunPlan, *, beside: RunPlan) -> RunPlan:
    """Return the plan of a companion with the layout and precision of the trained decoder.

    Args:
        plan: The companion's plan, of any layout.
        beside: The trained decoder's plan.

    Raises:
        ConfigError: its vocabulary or sequence length differs, or the layout cannot split its shape.
    """
    ours, theirs = beside.shape, plan.shape
    problems = [
        f"the companion's shape.{name} is {getattr(theirs, name)}, and the trained decoder's is {getattr(ours, name)}: "
        "they must be equal"
        for name in ("seq_length", "padded_vocab_size", "vocab_size")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    layout = dataclasses.replace(beside.layout, recompute=Recompute.NONE)
    try:
        validate_layout(shape=theirs, layout=layout, precision=beside.precision, batch=beside.batch)
    except LayoutError as error:
        problems += [f"the companion in this layout: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return dataclasses.replace(
        plan, layout=layout, batch=beside.batch, precision=beside.precision, document_mask=beside.document_mask
    )


class CompanionDecoder:
    """A `chinchilla_ds.objective.Companion`, with the interface that the schedules need."""

    def __init__(self, stage: PipelineStage, *, plan: RunPlan, ds_config: dict[str, Any] | None) -> None:
        """Freeze a stage.

        Args:
            stage: This rank's part, with its weights.
            plan: The result of `companion_plan`.
            ds_config: DeepSpeed's JSON, if ZeRO-3 partitions the stage; None: it is whole on every rank.
        """
        self.plan = plan
        stage.requires_grad_(False).eval()
        self.stage, self._run = stage, stage.to(cpu_backend.device()) if ds_config is None else stage
        if ds_config is not None:  # without an optimizer DeepSpeed only installs the hooks that gather weights
            self._run, *_ = deepspeed.initialize(model=stage, mpu=Mpu, config=ds_config)
            self._run.eval()

    @torch.no_grad()
    def run(self, tokens: Tensor, *, chunk: int = 0) -> Tensor:
        """Run one chunk; return logits [s, b, v/tp] on the last one, hidden states [s, b, h] on others."""
        output: Tensor = self._run(tokens, None, chunk=chunk)
        return output.transpose(0, 1) if self.stage.decoders[chunk].post_process else output

    def set_input_tensor(self, tensor: Tensor, *, chunk: int) -> None:
        """Give `chunk` the hidden states [s, b, h] received from the previous stage."""
        self.stage.set_input_tensor(tensor.detach(), chunk=chunk)

    @torch.no_grad()
    def logits(self, batches: Sequence[LabelledTokens], /) -> Sequence[Tensor | None]:
        """Run separate passes; return the logits [s, b, v/tp] of every micro-batch, None on stages without them."""
        if self.plan.layout.pipeline_model_parallel_size == 1:
            return [self.run(batch.tokens) for batch in batches]
        faces = [_Face(self, index) for index in range(len(self.stage.decoders))]
        micro_batch_size, seq_length = batches[0].tokens.shape
        outputs = get_forward_backward_func()(
            forward_step_func=_logits_step,
            data_iterator=[iter([batch.tokens for batch in batches]) for _ in faces],
            model=faces if len(faces) > 1 else faces[0],
            num_microbatches=len(batches),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=True,
            collect_non_loss_data=True,
        )
        return outputs or [None] * len(batches)


def _logits_step(tokens: Iterator[Tensor], face: "_Face") -> tuple[Tensor, Any]:
    return face(next(tokens)), lambda logits, non_loss_data: logits


class _Face(torch.nn.Module):
    """The interface of one model chunk that megatron's schedules expect."""

    def __init__(self, decoder: CompanionDecoder, index: int) -> None:
        super().__init__()
        model = decoder.stage.decoders[index]
        self._run, self._set_input_tensor, self._index = decoder.run, decoder.set_input_tensor, index
        self.config, self.model_type, self.vp_stage = model.config, model.model_type, model.vp_stage

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        if tensors[0] is not None:
            self._set_input_tensor(tensors[0], chunk=self._index)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._run(tokens, chunk=self._index)
