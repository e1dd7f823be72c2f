"""Forward and backward passes of one optimizer step: accumulation on one stage, 1F1B over several.

Shapes: s sequence, b micro-batch. A pipeline runs megatron-core's own schedules over the DeepSpeed engine. This
requires (deepspeed 0.19.8, megatron-core 0.16):

* Only one side may average over micro-batches. Megatron divides the loss on the last stage; DeepSpeed would divide
  every stage's output gradient by gradient_accumulation_steps, so under a pipeline DeepSpeed gets 1 (`zero.py`).
* 1F1B ends with backwards that have no forward between them, while DeepSpeed resets its per-backward state in
  `engine.forward` only. `_before_backward` resets it before every backward, and marks the step's last one, on which
  ZeRO-1 reduces and offloaded gradients leave for the CPU. It is a hook on the stage's output, so it runs before
  DeepSpeed's own.
* FP16: the loss is scaled where it is computed; the other stages receive gradients that are already scaled.

A non-finite loss gives non-finite gradients (`_with_its_gradient`), and DeepSpeed's optimizers skip such
steps (`distributed.deepspeed_patches` verifies that), so every rank skips the same step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.engine.frozen_decoder import CompanionDecoder
from chinchilla_ds.engine.micro_step import MicroStep
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.run_plan import RunPlan


class AccumulationSchedule:
    """One pipeline stage: micro-batches one after the other, DeepSpeed accumulating the gradients."""

    def __init__(self, *, engine: Any, plan: RunPlan, companion: CompanionDecoder | None) -> None:
        """Store the engine.

        Args:
            engine: DeepSpeed's engine.
            plan: the run's plan.
            companion: a decoder that runs beside the trained one.
        """
        self.engine, self.companion = engine, companion

    def train(self, steps: Sequence[MicroStep]) -> None:
        """Run forward and backward; every micro-step keeps its reported values."""
        for index, step in enumerate(steps):
            self.engine.set_gradient_accumulation_boundary(index == len(steps) - 1)
            if self.companion is not None:
                step.companion_logits = self.companion.run(step.tokens)
            loss = _with_its_gradient(self.engine(step.tokens, step))
            self.engine.backward(loss)

    def evaluate(self, steps: Sequence[MicroStep]) -> list[Tensor]:
        """Return the loss of every micro-batch."""
        return [self.engine(step.tokens, step) for step in steps]

    def logits(self, tokens: Tensor) -> Tensor | None:
        """Return logits [b, s, v/tp] of tokens [b, s]."""
        logits: Tensor = self.engine(tokens)
        return logits


class _Chunk(nn.Module):
    """The interface of one model chunk that megatron's schedules expect, backed by the engine.

    `engine.config` is DeepSpeed's and would shadow the TransformerConfig that the schedules look for.
    """

    def __init__(self, *, engine: Any, stage: PipelineStage, index: int) -> None:
        super().__init__()
        self._run = engine.__call__  # a bound method, so that the engine is not a submodule of this one
        self._set_input_tensor = stage.set_input_tensor
        model = stage.decoders[index]
        self.index = index
        self.config, self.model_type, self.vp_stage = model.config, model.model_type, model.vp_stage
        self.makes_loss = model.post_process
        self.companion: CompanionDecoder | None = None
        """The companion in the same passes; set during a step with a companion."""

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """Receive [s, b, h] from the previous stage, followed by the companion's hidden states."""
        received = tensors[0]
        if self.companion is not None and received is not None:
            width = self.config.hidden_size
            self.companion.set_input_tensor(received[..., width:], chunk=self.index)
            received = received[..., :width]
        self._set_input_tensor(received, chunk=self.index)

    def forward(self, tokens: Tensor, step: MicroStep | None) -> Tensor:
        """Run the chunk; the last one computes the loss."""
        theirs = None if self.companion is None else self.companion.run(tokens, chunk=self.index)
        if self.makes_loss and step is not None and theirs is not None:
            step.companion_logits = theirs
        output: Tensor = self._run(tokens, step if self.makes_loss else None, chunk=self.index)
        return output if theirs is None or self.makes_loss else torch.cat([output, theirs], -1)


class PipelineSchedule:
    """Several pipeline stages: megatron-core's 1F1B, interleaved if there are virtual stages."""

    def __init__(self, *, engine: Any, plan: RunPlan, companion: CompanionDecoder | None) -> None:
        """Register the hooks that megatron-core's schedules need.

        Args:
            engine: DeepSpeed's engine.
            plan: the run's plan.
            companion: a decoder that runs beside the trained one.
        """
        stage: PipelineStage = engine.module
        self.engine, self.plan, self.companion = engine, plan, companion
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
        self.engine._manual_backward_expected = True  # gradients of this stage's output are already scaled
        self._backwards_done[chunk] += 1

    def train(self, steps: Sequence[MicroStep]) -> None:
        """Run forward and backward; on the last stage every micro-step keeps its reported values."""
        self._num_micro_batches = len(steps)
        self._backwards_left = len(steps) * len(self.chunks)
        self._backwards_done = [0] * len(self.chunks)
        with self._beside(steps):
            self._schedule(_loss_step, steps, shape=steps[0].tokens.shape, forward_only=False)
        assert self._backwards_left == 0, f"{self._backwards_left} backward passes of this step never ran"

    @contextmanager
    def _beside(self, steps: Sequence[MicroStep]) -> Iterator[None]:
        """Let the companion run in the passes of a step, or before all of them under an interleaved schedule."""
        if self.companion is not None and len(self.chunks) > 1:
            for step, logits in zip(steps, self.companion.logits([step.batch for step in steps]), strict=True):
                step.companion_logits = logits
            yield
            return
        self.chunks[0].companion = self.companion
        yield
        self.chunks[0].companion = None

    def evaluate(self, steps: Sequence[MicroStep]) -> list[Tensor]:
        """Return the losses on the last stage, nothing on others."""
        return self._schedule(_loss_step, steps, shape=steps[0].tokens.shape, forward_only=True)

    def logits(self, tokens: Tensor) -> Tensor | None:
        """Return logits [b, s, v/tp] of tokens [b, s] on the last stage, None on others."""
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        repeats = stages if len(self.chunks) > 1 else 1  # interleaving needs as many micro-batches as stages
        outputs = self._schedule(_logits_step, [tokens] * repeats, shape=tokens.shape, forward_only=True)
        return outputs[-1] if outputs else None

    def _schedule(self, step: Any, inputs: Sequence[Any], *, shape: torch.Size, forward_only: bool) -> list[Tensor]:
        micro_batch_size, seq_length = shape
        outputs: list[Tensor] = self._forward_backward(
            forward_step_func=step,
            data_iterator=[iter(inputs) for _ in self.chunks],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(inputs),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
            collect_non_loss_data=step is _logits_step,
            adjust_tensor_shapes_fn=None if self.chunks[0].companion is None else self._widen,
        )
        return outputs

    def _widen(self, received: list[Any], _sent: list[Any]) -> tuple[list[Any], list[Any]]:
        """Set the width of the tensors between stages when a companion's hidden states are included."""
        assert self.companion is not None
        shape = (*received[0][:-1], received[0][-1] + self.companion.plan.shape.hidden_size)
        return [shape], [shape]


def _loss_step(steps: Iterator[MicroStep], chunk: _Chunk) -> tuple[Tensor, Any]:
    """The function that megatron's schedule calls for every micro-batch and chunk of a training or evaluation pass."""
    step = next(steps)
    return chunk(step.tokens, step), _keep_loss


def _keep_loss(loss: Tensor) -> tuple[Tensor, Tensor]:
    """Give megatron a separate loss to divide by the number of micro-batches, and keep this one."""
    return _with_its_gradient(loss.clone()), loss.detach().clone()


def _with_its_gradient(loss: Tensor) -> Tensor:
    """Return the loss; if it is non-finite, so is its gradient.

    An infinite loss can have finite gradients, for example of a probability that underflows to 0.
    """
    if loss.requires_grad:
        value = loss.detach()
        loss.register_hook(lambda grad: torch.where(torch.isfinite(value), grad, torch.nan))
    return loss


def _logits_step(tokens: Iterator[Tensor], chunk: _Chunk) -> tuple[Tensor, Any]:
    """The function that megatron's schedule calls for every micro-batch and chunk of a pass that keeps logits."""
    return chunk(next(tokens), None), lambda logits, non_loss_data: logits


def make_schedule(
    *, engine: Any, plan: RunPlan, companion: CompanionDecoder | None = None
) -> AccumulationSchedule | PipelineSchedule:
    """Return the schedule that the plan's layout needs.

    Args:
        engine: DeepSpeed's engine.
        plan: The run's plan.
        companion: A decoder that runs beside the trained one in training.
    """
    piped = plan.layout.pipeline_model_parallel_size > 1
    return (PipelineSchedule if piped else AccumulationSchedule)(engine=engine, plan=plan, companion=companion)


@torch.no_grad()
def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean over micro-batches and data-parallel ranks, on every rank; stages without a loss pass none.

    Returns:
        0-dimensional fp32 tensor.
    """
    return means_and_votes([losses], votes=())[0]


@torch.no_grad()
def means_and_votes(values: Sequence[Sequence[Tensor]], *, votes: Sequence[bool]) -> Tensor:
    """Return means over micro-batches and data-parallel ranks, and how many ranks voted, in one all-reduce.

    Args:
        values: The values of every quantity in each micro-batch; stages without a loss have none.
        votes: This rank's vote on each motion.

    Returns:
        fp32 tensor [quantities + motions], the same on every rank.
    """
    quantities = len(values)
    reduced = torch.tensor([*[0.0] * quantities, *map(float, votes)], device=cpu_backend.device())
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        for index, of_micro_batches in enumerate(values):
            if of_micro_batches:
                reduced[index] = torch.stack([value.float() for value in of_micro_batches]).mean()
    torch.distributed.all_reduce(reduced)
    reduced[:quantities] /= int(parallel_state.get_data_parallel_world_size())
    return reduced
