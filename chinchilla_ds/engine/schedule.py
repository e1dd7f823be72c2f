"""Forward and backward passes of one optimizer step: accumulation on one stage, 1F1B over several.

Shapes: s sequence, b micro-batch. A pipeline runs megatron-core's own schedules over the DeepSpeed engine. What that
takes (deepspeed 0.19.8, megatron-core 0.16):

* Only one side may average over micro-batches. Megatron divides the loss on the last stage; DeepSpeed would divide
  every stage's output gradient by gradient_accumulation_steps, so under a pipeline DeepSpeed is told 1 (`zero.py`).
* 1F1B ends with backwards that have no forward between them, while DeepSpeed resets its per-backward state in
  `engine.forward` only. `_before_backward` resets it before every backward, and marks the step's last one, on which
  ZeRO-1 reduces and offloaded gradients leave for the CPU. It is a hook on the stage's output, so it runs before
  DeepSpeed's own.
* FP16: the loss is scaled where it is made; the other stages receive gradients that are scaled already.

A loss that is no number makes gradients that are none (`_with_its_gradient`), and DeepSpeed's optimizers do not step on
those (`distributed.deepspeed_patches` holds them to that), so every rank skips the same step.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.run_plan import RunPlan


class MicroBatch(Protocol):
    """What the schedule reads of a micro-batch."""

    @property
    def tokens(self) -> Tensor:
        """Input tokens, [b, s]."""

    @property
    def labels(self) -> Tensor:
        """The tokens that follow them, [b, s]."""


class AccumulationSchedule:
    """One pipeline stage: micro-batches one after the other, DeepSpeed accumulating the gradients."""

    def __init__(self, *, engine: Any, plan: RunPlan) -> None:
        self.engine = engine

    def train(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Run forward and backward; return the loss of every micro-batch."""
        losses = []
        for index, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            loss = _with_its_gradient(self.engine(batch.tokens, batch.labels))
            self.engine.backward(loss)
            losses.append(loss.detach())
        return losses

    def evaluate(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Return the loss of every micro-batch."""
        return [self.engine(batch.tokens, batch.labels) for batch in batches]

    def logits(self, tokens: Tensor) -> Tensor | None:
        """Return logits [b, s, v/tp] of tokens [b, s]."""
        logits: Tensor = self.engine(tokens)
        return logits


class _Chunk(nn.Module):
    """The face of one model chunk that megatron's schedules expect, with the engine behind it.

    `engine.config` is DeepSpeed's and would shadow the TransformerConfig that the schedules look for.
    """

    def __init__(self, *, engine: Any, stage: PipelineStage, index: int) -> None:
        super().__init__()
        self._run = engine.__call__  # a bound method, so that the engine is no submodule of this face
        self._set_input_tensor = stage.set_input_tensor
        model = stage.decoders[index]
        self.index = index
        self.config, self.model_type, self.vp_stage = model.config, model.model_type, model.vp_stage
        self.makes_loss = model.post_process

    def set_input_tensor(self, tensors: list[Tensor]) -> None:
        """Receive [s, b, h] from the stage before."""
        self._set_input_tensor(tensors[0], chunk=self.index)

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Run the chunk; labels are for the last one alone."""
        output: Tensor = self._run(tokens, labels if self.makes_loss else None, chunk=self.index)
        return output


class PipelineSchedule:
    """Several pipeline stages: megatron-core's 1F1B, interleaved where there are virtual stages."""

    def __init__(self, *, engine: Any, plan: RunPlan) -> None:
        stage: PipelineStage = engine.module
        self.engine, self.plan = engine, plan
        self.chunks = [_Chunk(engine=engine, stage=stage, index=index) for index in range(len(stage.decoders))]
        self._num_micro_batches = self._backwards_left = 0
        self._backwards_done = [0] * len(self.chunks)
        self._forward_backward = get_forward_backward_func()
        for chunk in self.chunks:
            chunk.config.grad_scale_func = engine.scale
        # After deepspeed.initialize: forward hooks run in the order of registration, so this one sees the tensor that
        # the engine returns, behind ZeRO-3's own wrappers.
        stage.register_forward_hook(self._watch_output, with_kwargs=True)

    def _watch_output(self, _stage: nn.Module, _args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(self._before_backward, kwargs["chunk"]))

    def _before_backward(self, chunk: int, _grad: Tensor) -> None:
        self._backwards_left -= 1
        is_last = self._backwards_left == 0
        self.engine.optimizer.clear_backward_seen_flag()
        if self.plan.layout.zero_stage == 3:
            # 0 overwrites the gradients of the last step and more adds to them. DeepSpeed counts backwards of the
            # module; a chunk's first one must overwrite however many other chunks came before, and offloaded gradients
            # leave for the CPU on a chunk's last one.
            self.engine.optimizer.micro_step_id = self._backwards_done[chunk]
            is_last = self._backwards_done[chunk] == self._num_micro_batches - 1
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine._manual_backward_expected = True  # gradients of this stage's output are scaled already
        self._backwards_done[chunk] += 1

    def train(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Run forward and backward; return the losses on the last stage, nothing on others."""
        self._num_micro_batches = len(batches)
        self._backwards_left = len(batches) * len(self.chunks)
        self._backwards_done = [0] * len(self.chunks)
        losses = self._schedule(_loss_step, batches, shape=batches[0].tokens.shape, forward_only=False)
        assert self._backwards_left == 0, f"{self._backwards_left} backward passes of this step never ran"
        return losses

    def evaluate(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Return the losses on the last stage, nothing on others."""
        return self._schedule(_loss_step, batches, shape=batches[0].tokens.shape, forward_only=True)

    def logits(self, tokens: Tensor) -> Tensor | None:
        """Return logits [b, s, v/tp] of tokens [b, s] on the last stage, None on others."""
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        repeats = stages if len(self.chunks) > 1 else 1  # interleaving needs as many micro-batches as stages
        outputs = self._schedule(_logits_step, [tokens] * repeats, shape=tokens.shape, forward_only=True)
        return outputs[-1] if outputs else None

    def _schedule(self, step: Any, inputs: Sequence[Any], *, shape: torch.Size, forward_only: bool) -> list[Tensor]:
        micro_batch_size, seq_length = shape
        kept: list[Tensor] = self._forward_backward(
            forward_step_func=step,
            data_iterator=[iter(inputs) for _ in self.chunks],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(inputs),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
            collect_non_loss_data=step is _logits_step,
        )
        return kept


def _loss_step(batches: Iterator[MicroBatch], chunk: _Chunk) -> tuple[Tensor, Any]:
    """What megatron's schedule calls for every micro-batch and chunk of a training or evaluation pass."""
    batch = next(batches)
    return chunk(batch.tokens, batch.labels), _keep_loss


def _keep_loss(loss: Tensor) -> tuple[Tensor, Tensor]:
    """Hand megatron a loss of its own to divide by the number of micro-batches, and keep this one."""
    return _with_its_gradient(loss.clone()), loss.detach().clone()


def _with_its_gradient(loss: Tensor) -> Tensor:
    """Return the loss; where it is no number, its gradient is none either.

    An infinite loss can have finite gradients: of a probability that underflows to 0, say.
    """
    if loss.requires_grad:
        value = loss.detach()
        loss.register_hook(lambda grad: torch.where(torch.isfinite(value), grad, torch.nan))
    return loss


def _logits_step(tokens: Iterator[Tensor], chunk: _Chunk) -> tuple[Tensor, Any]:
    """What megatron's schedule calls for every micro-batch and chunk of a pass that keeps logits."""
    return chunk(next(tokens), None), lambda logits, non_loss_data: logits


def make_schedule(*, engine: Any, plan: RunPlan) -> AccumulationSchedule | PipelineSchedule:
    """Return the schedule that the plan's layout needs."""
    piped = plan.layout.pipeline_model_parallel_size > 1
    return (PipelineSchedule if piped else AccumulationSchedule)(engine=engine, plan=plan)


@torch.no_grad()
def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean over micro-batches and data-parallel ranks, on every rank; stages without a loss pass none.

    Returns:
        0-dimensional fp32 tensor.
    """
    return mean_loss_and_votes(losses, votes=())[0]


@torch.no_grad()
def mean_loss_and_votes(losses: Sequence[Tensor], *, votes: Sequence[bool]) -> Tensor:
    """Return `mean_loss`, and how many ranks voted for each motion, in one all-reduce.

    Returns:
        fp32 tensor [1 + motions], the same on every rank.
    """
    told = torch.tensor([0.0, *map(float, votes)], device=cpu_backend.device())
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        told[0] = torch.stack([loss.float() for loss in losses]).mean()
    torch.distributed.all_reduce(told)
    told[0] /= int(parallel_state.get_data_parallel_world_size())
    return told
