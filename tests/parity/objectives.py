"""Objectives as somebody outside the package would write them: what tests of the seam train with."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_ds.objective import LossValue, Objective, ParameterGroup, Sum
from chinchilla_ds.run_plan import RunPlan

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Source: Louizos et al. 2018 (arXiv:1712.01312), sections 2.2 and 4."""


def seeded(name: str, numel: int, *, uniform: bool = False) -> Tensor:
    """Return values that depend on the name alone, never on the layout."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
    if uniform:
        return torch.rand(numel, generator=generator).clamp(1e-6, 1 - 1e-6)
    return torch.randn(numel, generator=generator)


# ---- an auxiliary loss ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ZLoss(Objective):
    """Cross entropy + coefficient * log(Z)^2, Z being the softmax's denominator.

    Source: Chowdhery et al. 2022 (arXiv:2204.02311), section 5.
    """

    coefficient: float = 0.05
    scalar_names = ("z_loss",)

    def loss(self, output: Any, /) -> LossValue:
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        of_this_rank = output.logits.float().logsumexp(-1, keepdim=True)
        log_z = gather_from_tensor_model_parallel_region(of_this_rank).logsumexp(-1)
        z_loss = self.coefficient * log_z.square().mean()
        return LossValue(loss=output.cross_entropy().mean() + z_loss, scalars={"z_loss": z_loss})


# ---- a companion ----------------------------------------------------------------------------------------------------


def all_reduce_over_tensor_parallel(tensor: Tensor, op: Any = torch.distributed.ReduceOp.SUM) -> Tensor:
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(tensor, op=op, group=parallel_state.get_tensor_model_parallel_group())
    return tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Return the log-probabilities of this rank's part of the vocabulary."""
    top = all_reduce_over_tensor_parallel(logits.max(-1, keepdim=True).values, torch.distributed.ReduceOp.MAX)
    shifted = logits - top
    return shifted - all_reduce_over_tensor_parallel(shifted.exp().sum(-1, keepdim=True)).log()


class VocabParallelKl(torch.autograd.Function):
    """KL(teacher || student) of every token in nats, from logits [..., v/tp]; equal on every tensor-parallel rank."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = log_softmax(student), log_softmax(teacher)
        weights = theirs.exp()
        ctx.save_for_backward(ours.exp() - weights)
        return all_reduce_over_tensor_parallel((weights * (theirs - ours)).sum(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * difference, None


@dataclass(kw_only=True)
class Distillation(Objective):
    """weight * T^2 * KL(teacher || student) + (1 - weight) * cross entropy, over the true vocabulary.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2.1. The padding of the vocabulary is left out of the KL: the
    teacher's logits there are those of weights that never trained.
    """

    teacher_plan: RunPlan
    partitioned: bool = False
    beside: bool = True
    """Whether the teacher runs in the student's own passes; otherwise all of its passes come first."""
    weight: float = 0.7
    temperature: float = 2.0
    scalar_names = ("kl",)

    def attach(self, site: Any, /) -> None:
        self.teacher = site.frozen_decoder(self.teacher_plan, partitioned=self.partitioned)
        self.vocab_size = site.plan.shape.vocab_size

    def companion(self) -> Any:
        return self.teacher if self.beside else None

    def prepare(self, batches: Sequence[Any], /, *, step: Any) -> Sequence[Any]:
        return [None] * len(batches) if self.beside else self.teacher.logits(batches)

    def loss(self, output: Any, /) -> LossValue:
        theirs = output.companion_logits if self.beside else output.prepared
        student, teacher = (self._without_padding(part.float() / self.temperature) for part in (output.logits, theirs))
        kl = VocabParallelKl.apply(student, teacher).mean()
        loss = self.weight * self.temperature**2 * kl + (1 - self.weight) * output.cross_entropy().mean()
        return LossValue(loss=loss, scalars={"kl": kl})

    def _without_padding(self, logits: Tensor) -> Tensor:
        from megatron.core import parallel_state

        first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
        ids = first + torch.arange(logits.size(-1), device=logits.device)
        return logits.masked_fill(ids >= self.vocab_size, torch.finfo(torch.float32).min / 4)


# ---- parameters on every stage --------------------------------------------------------------------------------------


def hard_concrete(log_alpha: Tensor, noise: Tensor) -> Tensor:
    soft = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def certain(log_alpha: Tensor) -> Tensor:
    """Return the gate without noise, for evaluation."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def expected_open(log_alpha: Tensor) -> Tensor:
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def initial_log_alpha(layer: int, numel: int) -> Tensor:
    return 1.0 + seeded(f"log_alpha.{layer}", numel)


def initial_scale(layer: int) -> Tensor:
    return 1.0 + 0.1 * seeded(f"scale.{layer}", 1)


def noise_of(step: int, layer: int, numel: int) -> Tensor:
    return seeded(f"noise.{step}.{layer}", numel, uniform=True)


class AttachPenalty(torch.autograd.Function):
    """Return x; let backward give `penalty` the gradient `scale`, on whatever stage it stands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full((), ctx.scale, dtype=torch.float32, device=grad.device), None


class Gate(nn.Module):
    """Multiplies the input [s, b, f/tp] of `linear_fc2`.

    `log_alpha` [f/tp] is cut as the channels are: its gradient is local and complete. `scale` [1] is a replica that is
    used on what tensor parallelism has cut: each rank's gradient is a part, summed before ZeRO's hooks see it.
    """

    def __init__(self, *, layer: int, ffn_hidden_size: int, dtype: torch.dtype, reduces_scale: bool) -> None:
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes

        super().__init__()
        self.layer, self.full, self.reduces_scale = layer, ffn_hidden_size, reduces_scale
        self.rank = parallel_state.get_tensor_model_parallel_rank()
        self.world_size = parallel_state.get_tensor_model_parallel_world_size()
        self.log_alpha = nn.Parameter(self._cut(initial_log_alpha(layer, ffn_hidden_size)).to(dtype))
        self.scale = nn.Parameter(initial_scale(layer).to(dtype))
        set_tensor_model_parallel_attributes(self.log_alpha, True, 0, 1)
        self.noise: Tensor | None = None
        self.penalty_gradient = 0.0

    def _cut(self, full: Tensor) -> Tensor:
        return full.chunk(self.world_size)[self.rank].clone()

    def start_step(self, *, step: int, penalty_gradient: float) -> None:
        """Draw one noise for the step: a forward pass that is computed again meets the same."""
        self.noise = self._cut(noise_of(step, self.layer, self.full))
        self.penalty_gradient = penalty_gradient

    def forward(self, x: Tensor) -> Tensor:
        from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

        scale = copy_to_tensor_model_parallel_region(self.scale) if self.reduces_scale else self.scale
        log_alpha = self.log_alpha.float()
        gate = hard_concrete(log_alpha, self.noise) if self.training and self.noise is not None else certain(log_alpha)
        x = x * (gate * scale.float()).to(x.dtype)
        if self.training and torch.is_grad_enabled():
            x = AttachPenalty.apply(x, expected_open(log_alpha).sum(), self.penalty_gradient)
        return x


@dataclass(kw_only=True)
class Gates(Objective):
    """Cross entropy, and an augmented Lagrangian that holds the share of open channels to `target`.

    loss + lambda (share - target) + rho/2 (share - target)^2; lambda climbs after every step. Its gradient with respect
    to a gate is (lambda + rho (share - target)) times the gate's own, so one number of all ranks suffices. Source of
    the Lagrangian: Wang et al. 2020 (arXiv:1910.04732), section 3.2.
    """

    target: float = 0.5
    rho: float = 5.0
    climb: float = 0.5
    lr_scale: float = 10.0
    reduces_scale: bool = True
    within_init: bool = False
    """Whether gates are built within zero.Init; otherwise deepspeed.initialize partitions them."""
    scalar_names = ("penalty", "open")

    def attach(self, site: Any, /) -> None:
        from contextlib import nullcontext

        self.plan, self.gates, self.multiplier, self.share = site.plan, [], 0.1, math.nan
        shape = site.plan.shape
        self.total = shape.num_layers * shape.ffn_hidden_size
        for chunk in site.stage.decoders:
            for layer in chunk.decoder.layers:
                with site.partition() if self.within_init else nullcontext():
                    gate = Gate(
                        layer=layer.layer_number - 1,
                        ffn_hidden_size=shape.ffn_hidden_size,
                        dtype=chunk.config.params_dtype,
                        reduces_scale=self.reduces_scale,
                    )
                site.register(layer.mlp, "gate", gate)
                layer.mlp.linear_fc2.register_forward_pre_hook(lambda _m, args, gate=gate: (gate(args[0]), *args[1:]))
                self.gates.append(gate)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        own = [parameter for gate in self.gates for parameter in (gate.log_alpha, gate.scale)]
        return [ParameterGroup(parameters=own, lr_scale=self.lr_scale)]

    @torch.no_grad()
    def prepare(self, batches: Sequence[Any], /, *, step: Any) -> Sequence[Any]:
        from contextlib import nullcontext

        import deepspeed
        from megatron.core import parallel_state

        alphas = [gate.log_alpha for gate in self.gates]
        zero3 = self.plan.layout.zero_stage == 3
        with deepspeed.zero.GatheredParameters(alphas) if zero3 else nullcontext():
            is_open = torch.stack([expected_open(alpha.float()).sum() for alpha in alphas]).sum()
        torch.distributed.all_reduce(is_open, group=parallel_state.get_model_parallel_group())
        self.share = float(is_open) / self.total
        gradient = (self.multiplier + self.rho * (self.share - self.target)) / self.total * step.gradient_scale
        for gate in self.gates:
            gate.start_step(step=step.number, penalty_gradient=gradient)
        return [None] * len(batches)

    def loss(self, output: Any, /) -> LossValue:
        gap = self.share - self.target
        penalty = self.multiplier * gap + self.rho / 2 * gap**2
        return LossValue(loss=output.cross_entropy().mean() + penalty, scalars={"penalty": penalty, "open": self.share})

    def end_step(self, *, skipped: bool) -> None:
        if not skipped:
            self.multiplier += self.climb * (self.share - self.target)

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Any, /) -> None:
        self.multiplier = state["multiplier"]

    def folds(self, name: str, /) -> bool:
        return True

    def fold(self, name: str, weight: Tensor, own: Any, /) -> Tensor:
        if not name.endswith("mlp.linear_fc2.weight"):
            return weight
        parent = name.removesuffix(".linear_fc2.weight")
        return weight * (certain(own.read(parent, "gate.log_alpha")) * own.read(parent, "gate.scale"))


class GatesInASum(Sum):
    """A sum that a plan can name."""

    def __init__(self) -> None:
        super().__init__(gates=Gates(), plain=Objective())


# ---- a parameter on the last stage alone ----------------------------------------------------------------------------


class Temper(nn.Module):
    """Logits [s, b, v/tp] over exp(log_temperature), a replica used on a part of the vocabulary."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.full((1,), 0.1, dtype=dtype))

    def forward(self, logits: Tensor) -> Tensor:
        from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

        return logits * torch.exp(-copy_to_tensor_model_parallel_region(self.log_temperature))


@dataclass(kw_only=True)
class Tempered(Objective):
    """Cross entropy at a temperature that is learned: stands for heads, which the last stage alone has."""

    def attach(self, site: Any, /) -> None:
        self.own: list[nn.Parameter] = []
        last = site.stage.decoders[-1]
        if last.post_process:
            self.temper = Temper(last.config.params_dtype)
            site.register(last, "temper", self.temper)
            self.own = list(self.temper.parameters())

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [ParameterGroup(parameters=self.own, lr_scale=5.0)]

    def loss(self, output: Any, /) -> LossValue:
        from chinchilla_ds.model.cross_entropy import token_losses

        return LossValue(loss=token_losses(self.temper(output.logits), output.batch.labels).mean())
