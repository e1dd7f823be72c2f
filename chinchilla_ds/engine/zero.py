"""A DeepSpeed ZeRO engine over megatron-core: `TrainingEngine.train_step(batches)` is one optimizer step."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend, groups, recompute
from chinchilla_ds.distributed.mpu import Mpu
from chinchilla_ds.engine import precision
from chinchilla_ds.engine.deepspeed_check import clips_itself, for_deepspeed
from chinchilla_ds.engine.nonfinite import FirstBad, NonFiniteWatch
from chinchilla_ds.engine.optimizer import make_optimizer
from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.engine.schedule import MicroBatch, make_schedule, mean_loss, mean_loss_and_votes
from chinchilla_ds.model.decoder import PipelineStage, build_stage
from chinchilla_ds.model.initialization import initialize
from chinchilla_ds.run_plan import Precision, RunPlan


def _gather_for_writing(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return context


class TrainingEngine:
    """This rank's stage of the decoder, its optimizer partition, and the schedule that runs them."""

    def __init__(self, *, plan: RunPlan, ds_config: dict[str, Any], eod_id: int | None = None) -> None:
        """Build and initialise; process groups must exist.

        Args:
            plan: The resolved plan.
            ds_config: The resolved DeepSpeed JSON, without our own section and without "auto".
            eod_id: The end-of-document token; needed where the plan masks documents.
        """
        self.plan = plan
        told = for_deepspeed(ds_config, plan)
        zero3 = plan.layout.zero_stage == 3
        partition = (
            deepspeed.zero.Init(
                config_dict_or_path=told, data_parallel_group=parallel_state.get_data_parallel_group(), mpu=Mpu
            )
            if zero3
            else None
        )
        recompute.configure(ds_config=ds_config, num_layers=plan.shape.num_layers)
        stage = build_stage(plan, partition=partition, eod_id=eod_id)
        initialize(stage, plan=plan, gather=_gather_for_writing if zero3 else None)
        optimizer = make_optimizer(stage, plan=plan)
        self.engine, *_ = deepspeed.initialize(model=stage, optimizer=optimizer, mpu=Mpu, config=told)
        if plan.layout.zero_stage == 0 and plan.precision is not Precision.FP32:
            # DeepSpeed's wrapper has taken a step on zero gradients, which a count of steps would hold
            self.engine.optimizer.optimizer.state.clear()
        if plan.layout.zero_stage == 0 and plan.layout.data_parallel_size == 1:
            self.engine.enable_backward_allreduce = False  # else every gradient is copied, to be summed over one rank
        if plan.precision is Precision.FP16:
            # at the smallest scale DeepSpeed would raise a bare Exception; the loop counts such batches as bad ones
            self.engine.optimizer.loss_scaler.raise_error_at_min_scale = False
        self.schedule = make_schedule(engine=self.engine, plan=plan)
        self.watch = NonFiniteWatch(stage)

    @property
    def stage(self) -> PipelineStage:
        """The module that holds this rank's weights."""
        stage: PipelineStage = self.engine.module
        return stage

    def train_step(
        self, batches: Sequence[MicroBatch], *, learning_rate: float, stop: bool = False, save: bool = False
    ) -> StepResult:
        """Take one optimizer step; one whose loss or gradients are no numbers is skipped on every rank.

        Args:
            batches: This data-parallel rank's micro-batches of the step, plan.batch.gradient_accumulation_steps many.
            learning_rate: AdamW's learning rate for this step.
            stop: Whether this rank was asked to stop.
            save: Whether this rank finds that it is time to save.

        Returns:
            The step's loss, gradient norm, whether it was skipped, to stop and to save, the same on every rank.
        """
        self.engine.train()
        self.watch.start_step()
        losses = self.schedule.train(batches)
        told = mean_loss_and_votes(losses, votes=(stop, save))
        norm = self._clip() if clips_itself(self.plan) else None
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        loss, stops, saves = told.tolist()
        if norm is None:
            skipped = not self.engine.was_step_applied()
            norm = precision.grad_norm(self.engine, skipped=skipped)
        else:
            skipped, norm = not math.isfinite(norm), norm if math.isfinite(norm) else math.nan
        return StepResult(
            loss=loss,
            grad_norm=norm,
            learning_rate=learning_rate,
            skipped=skipped,
            loss_scale=precision.loss_scale(self.engine, self.plan.precision),
            stop=stops > 0,
            save=saves > 0,
        )

    def _clip(self) -> float:
        """Clip this rank's gradients by the global norm, which is returned; drop them where it is no number."""
        largest = self.plan.optimizer.gradient_clipping or math.inf
        norm = float(clip_grad_norm_(self.stage.parameters(), largest, mpu=Mpu))
        if not math.isfinite(norm):
            self.engine.zero_grad()  # AdamW passes over a weight without a gradient, moments and step count included
        return norm

    def first_bad_micro_batches(self) -> list[FirstBad]:
        """Return, of every rank, where the last step's numbers were none first. Every rank calls this."""
        return self.watch.of_all_ranks()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> float:
        """Return the mean loss over all data-parallel ranks' batches, nats per token, on every rank."""
        self.engine.eval()
        return float(mean_loss(self.schedule.evaluate(batches)))

    @torch.no_grad()
    def next_token_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits [v] of the token after `tokens`, the same on every rank; all ranks pass the same tokens.

        Runs the whole window of at most seq_length tokens, without a key-value cache: every layout and ZeRO stage that
        can train can sample.
        """
        self.engine.eval()
        shape, device = self.plan.shape, cpu_backend.device()
        window = list(tokens)[-shape.seq_length :]
        padded = torch.zeros((1, shape.seq_length), dtype=torch.int64, device=device)
        padded[0, : len(window)] = torch.tensor(window, device=device)
        logits = self.schedule.logits(padded)
        next_logits = torch.empty(shape.padded_vocab_size, device=device)
        if logits is not None:
            shard = logits[0, len(window) - 1].float()
            next_logits = gather_from_tensor_model_parallel_region(shard).contiguous()
        torch.distributed.broadcast(next_logits, src=groups.loss_owner_rank())
        return next_logits
