"""A DeepSpeed ZeRO engine over megatron-core: `TrainingEngine.train_step(batches)` is one optimizer step."""

import contextlib
import dataclasses
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
from chinchilla_ds.engine.frozen_decoder import CompanionDecoder
from chinchilla_ds.engine.micro_step import MicroStep, reported_names
from chinchilla_ds.engine.nonfinite import FirstBad, NonFiniteWatch
from chinchilla_ds.engine.optimizer import make_optimizer
from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.engine.schedule import make_schedule, mean_loss, means_and_votes
from chinchilla_ds.engine.site import AttachmentSite, own_groups
from chinchilla_ds.model.decoder import PipelineStage, build_stage
from chinchilla_ds.model.initialization import initialize
from chinchilla_ds.objective import OWN, LabelledTokens, Objective, Step, make_objective, spec_of
from chinchilla_ds.run_plan import Precision, RunPlan


def _gather_for_writing(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return context


def _zero_init(engine_config: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.Init(
        config_dict_or_path=engine_config, data_parallel_group=parallel_state.get_data_parallel_group(), mpu=Mpu
    )
    return context


def _build(plan: RunPlan, *, eod_id: int | None, engine_config: dict[str, Any], partitioned: bool) -> PipelineStage:
    """Build a stage with its initial weights."""
    stage = build_stage(plan, partition=_zero_init(engine_config) if partitioned else None, eod_id=eod_id)
    initialize(stage, plan=plan, gather=_gather_for_writing if partitioned else None)
    return stage


class TrainingEngine:
    """This rank's stage of the decoder, its optimizer partition, and the schedule that runs them."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        ds_config: dict[str, Any],
        eod_id: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Build and initialise; process groups must exist.

        Args:
            plan: The resolved plan.
            ds_config: The resolved DeepSpeed JSON, without our own section and without "auto".
            eod_id: The end-of-document token; required if the plan masks documents.
            objective: Computes the loss; None: the one that the plan names.

        Raises:
            ConfigError: the objective that the plan names cannot be made, or cannot be attached.
        """
        self.objective = make_objective(plan.objective) if objective is None else objective
        self.plan = plan = dataclasses.replace(plan, objective=spec_of(self.objective))
        engine_config = for_deepspeed(ds_config, plan)
        recompute.configure(ds_config=ds_config, num_layers=plan.shape.num_layers)
        stage = _build(plan, eod_id=eod_id, engine_config=engine_config, partitioned=plan.layout.zero_stage == 3)
        self._attach(stage, eod_id=eod_id, engine_config=engine_config)
        optimizer = make_optimizer(stage, plan=plan, more_groups=own_groups(self.objective, stage))
        self.engine, *_ = deepspeed.initialize(model=stage, optimizer=optimizer, mpu=Mpu, config=engine_config)
        if plan.layout.zero_stage == 0 and plan.precision is not Precision.FP32:
            # DeepSpeed's wrapper has taken a step on zero gradients, which a step count would include
            self.engine.optimizer.optimizer.state.clear()
        if plan.layout.zero_stage == 0 and plan.layout.data_parallel_size == 1:
            self.engine.enable_backward_allreduce = (
                False  # otherwise every gradient is copied, to be summed over one rank
            )
        if plan.precision is Precision.FP16:
            # at the smallest scale DeepSpeed would raise a bare Exception; the loop counts such batches as bad
            self.engine.optimizer.loss_scaler.raise_error_at_min_scale = False
        self.schedule = make_schedule(engine=self.engine, plan=plan, companion=self._companion())
        self.watch = NonFiniteWatch(stage)

    def _attach(self, stage: PipelineStage, *, eod_id: int | None, engine_config: dict[str, Any]) -> None:
        """Attach the objective, once all weights of the decoder have their initial values."""
        zero3 = self.plan.layout.zero_stage == 3

        def build_frozen(plan: RunPlan, partitioned: bool) -> CompanionDecoder:
            partitioned = partitioned and zero3
            frozen = _build(plan, eod_id=eod_id, engine_config=engine_config, partitioned=partitioned)
            return CompanionDecoder(frozen, plan=plan, ds_config=engine_config if partitioned else None)

        self.objective.attach(
            AttachmentSite(
                stage,
                plan=self.plan,
                partition=lambda: _zero_init(engine_config) if zero3 else contextlib.nullcontext(),
                build_frozen=build_frozen,
            )
        )

    def _companion(self) -> CompanionDecoder | None:
        companion = self.objective.companion()
        assert companion is None or isinstance(companion, CompanionDecoder), (
            "a companion must come from Site.frozen_decoder"
        )
        return companion

    @property
    def stage(self) -> PipelineStage:
        """The module that holds this rank's weights."""
        stage: PipelineStage = self.engine.module
        return stage

    def train_step(
        self, batches: Sequence[LabelledTokens], *, learning_rate: float, stop: bool = False, save: bool = False
    ) -> StepResult:
        """Take one optimizer step; one with a non-finite loss or gradients is skipped on every rank.

        Args:
            batches: This data-parallel rank's plan.batch.gradient_accumulation_steps micro-batches of the step.
            learning_rate: AdamW's learning rate for this step.
            stop: Whether this rank was asked to stop.
            save: Whether, by this rank's clock, it is time to save.

        Returns:
            The step's loss, gradient norm, whether it was skipped, to stop and to save, the same on every rank.
        """
        self.engine.train()
        self.watch.start_step()
        steps = self._prepared(batches)
        self.schedule.train(steps)
        names = reported_names(self.objective)
        reported = [[step.reported[name] for step in steps if step.reported] for name in names]
        reduced = means_and_votes(reported, votes=(stop, save))
        norm = self._clip() if clips_itself(self.plan) else None
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.engine.step()
        *means, stops, saves = reduced.tolist()
        if norm is None:
            skipped = not self.engine.was_step_applied()
            norm = precision.grad_norm(self.engine, skipped=skipped)
        else:
            skipped, norm = not math.isfinite(norm), norm if math.isfinite(norm) else math.nan
        self.objective.end_step(skipped=skipped)
        values = dict(zip(names, means, strict=True))
        return StepResult(
            loss=values["loss"],
            objective_loss=values.get("objective_loss"),
            scalars={name: values[f"{OWN}/{name}"] for name in self.objective.scalar_names},
            grad_norm=norm,
            learning_rate=learning_rate,
            skipped=skipped,
            loss_scale=precision.loss_scale(self.engine, self.plan.precision),
            stop=stops > 0,
            save=saves > 0,
        )

    def _prepared(self, batches: Sequence[LabelledTokens]) -> list[MicroStep]:
        """Return the micro-batches with the objective's preparation for them."""
        scale = precision.loss_scale(self.engine, self.plan.precision) / len(batches)
        prepared = self.objective.prepare(batches, step=Step(number=self.attempts, gradient_scale=scale))
        return [
            MicroStep(batch, objective=self.objective, trains=True, prepared=of_batch)
            for batch, of_batch in zip(batches, prepared, strict=True)
        ]

    @property
    def attempts(self) -> int:
        """Steps tried, skipped ones included."""
        return int(self.engine.global_steps)

    @attempts.setter
    def attempts(self, count: int) -> None:
        self.engine.global_steps = count

    def _clip(self) -> float:
        """Clip this rank's gradients by the global norm, which is returned; drop them if it is non-finite."""
        largest = self.plan.optimizer.gradient_clipping or math.inf
        norm = float(clip_grad_norm_(self.stage.parameters(), largest, mpu=Mpu))
        if not math.isfinite(norm):
            self.engine.zero_grad()  # AdamW skips a weight without a gradient, moments and step count included
        return norm

    def first_bad_micro_batches(self) -> list[FirstBad]:
        """Return, for every rank, where the last step first became non-finite. Every rank calls this."""
        return self.watch.of_all_ranks()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[LabelledTokens]) -> float:
        """Return the objective's measured loss, the mean over all data-parallel ranks' batches, on every rank.

        It is in nats per token, unless the objective measures something else.
        """
        self.engine.eval()
        steps = [MicroStep(batch, objective=self.objective, trains=False) for batch in batches]
        losses = self.schedule.evaluate(steps)
        self._release_prefetched()
        return float(mean_loss(losses))

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
        self._release_prefetched()
        next_logits = torch.empty(shape.padded_vocab_size, device=device)
        if logits is not None:
            shard = logits[0, len(window) - 1].float()
            next_logits = gather_from_tensor_model_parallel_region(shard).contiguous()
        torch.distributed.broadcast(next_logits, src=groups.loss_owner_rank())
        return next_logits

    def _release_prefetched(self) -> None:
        """Release the weights that ZeRO-3 gathered for a pass.

        DeepSpeed prefetches in the order of a training pass. One that ends earlier, as when a head serves the
        objective's loss alone, leaves weights in flight, and the next to gather them would fail.
        """
        if self.plan.layout.zero_stage == 3:
            self.engine.optimizer.empty_partition_cache()
