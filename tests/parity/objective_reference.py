"""What the objectives of `tests.parity.objectives` must come to: one process, plain PyTorch, full weights.

Each `Truth` says again, in a few lines and without a word about ranks, what an objective does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_ds.run_plan import RunPlan
from tests.parity import harness
from tests.parity.objectives import (
    Distillation,
    Gates,
    certain,
    expected_open,
    hard_concrete,
    initial_log_alpha,
    initial_scale,
    noise_of,
)
from tests.parity.reference_llama import ReferenceLlama, load_from_megatron_state, make_adamw, to_megatron_state


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run with an objective shows to the outside."""

    losses: list[float]
    """Cross entropy of every step."""
    objective_losses: list[float]
    scalars: list[Mapping[str, float]]
    grad_norms: list[float]
    evaluation: float
    weights: dict[str, Tensor]
    """After the last step, in fp32, under global names."""


class Truth:
    """Next-token cross entropy; others override what they change."""

    lr_scale = 1.0

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.own: dict[str, nn.Parameter] = {}
        """By what stands behind `objective.` in the global name, and what in front of it."""

    def begin(self, step: int) -> Tensor | float:
        """Return what is added to the step's loss once."""
        return 0.0

    def gates(self, step: int | None) -> Sequence[Tensor | float]:
        """Return what the inputs of the layers' down projections are multiplied by; step None: in an evaluation."""
        return [1.0] * self.plan.shape.num_layers

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of logits [b, s, v] and what is reported of it."""
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), {}

    def end(self) -> None:
        """Follow the step."""


class ZLossTruth(Truth):
    """log Z squared, over the whole padded vocabulary."""

    coefficient = 0.05

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        z_loss = self.coefficient * logits.exp().sum(-1).log().square().mean()
        return super().loss(logits, tokens, labels)[0] + z_loss, {"z_loss": float(z_loss.detach())}


class DistillationTruth(Truth):
    """A teacher in the same process."""

    def __init__(self, plan: RunPlan, teacher: RunPlan) -> None:
        super().__init__(plan)
        self.teacher = ReferenceLlama(teacher.shape)
        load_from_megatron_state(self.teacher, harness.initial_weights(teacher))

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            theirs = self.teacher(tokens)
        valid, heat, weight = self.plan.shape.vocab_size, Distillation.temperature, Distillation.weight
        kl = F.kl_div(
            (logits[..., :valid] / heat).log_softmax(-1).flatten(0, 1),
            (theirs[..., :valid] / heat).log_softmax(-1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        cross_entropy, _ = super().loss(logits, tokens, labels)
        return weight * heat**2 * kl + (1 - weight) * cross_entropy, {"kl": float(kl.detach())}


class GatesTruth(Truth):
    """The penalty is of all gates together, and added once a step."""

    lr_scale = Gates.lr_scale

    def __init__(self, plan: RunPlan, *, prefix: str = "") -> None:
        super().__init__(plan)
        self.multiplier, self.share = 0.1, math.nan
        self.alphas = [
            nn.Parameter(initial_log_alpha(n, plan.shape.ffn_hidden_size)) for n in range(plan.shape.num_layers)
        ]
        self.scales = [nn.Parameter(initial_scale(n)) for n in range(plan.shape.num_layers)]
        for n, (alpha, scale) in enumerate(zip(self.alphas, self.scales, strict=True)):
            at = f"decoder.layers.{n}.mlp.objective.{prefix}gate."
            self.own |= {f"{at}log_alpha": alpha, f"{at}scale": scale}

    def begin(self, step: int) -> Tensor | float:
        share = torch.cat([expected_open(alpha) for alpha in self.alphas]).mean()
        gap = share - Gates.target
        penalty = self.multiplier * gap + Gates.rho / 2 * gap**2
        self.share, self.penalty = float(share.detach()), float(penalty.detach())
        return penalty

    def gates(self, step: int | None) -> Sequence[Tensor | float]:
        pairs = enumerate(zip(self.alphas, self.scales, strict=True))
        if step is None:
            return [certain(alpha) * scale for _, (alpha, scale) in pairs]
        return [hard_concrete(alpha, noise_of(step, n, len(alpha))) * scale for n, (alpha, scale) in pairs]

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, _ = super().loss(logits, tokens, labels)
        return loss, {"penalty": self.penalty, "open": self.share}

    def end(self) -> None:
        self.multiplier += Gates.climb * (self.share - Gates.target)


class TemperedTruth(Truth):
    """A temperature that is learned."""

    lr_scale = 5.0

    def __init__(self, plan: RunPlan) -> None:
        super().__init__(plan)
        self.log_temperature = nn.Parameter(torch.full((1,), 0.1))
        self.own = {"objective.temper.log_temperature": self.log_temperature}

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        return super().loss(logits / self.log_temperature.exp(), tokens, labels)


class SumTruth(Truth):
    """Losses, penalties and scalars of two; the gates are the first one's."""

    def __init__(self, plan: RunPlan, **parts: Truth) -> None:
        super().__init__(plan)
        self.parts, self.first = parts, next(iter(parts.values()))
        self.own, self.lr_scale = self.first.own, self.first.lr_scale

    def begin(self, step: int) -> Tensor | float:
        return sum(part.begin(step) for part in self.parts.values())

    def gates(self, step: int | None) -> Sequence[Tensor | float]:
        return self.first.gates(step)

    def loss(self, logits: Tensor, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        found = {key: part.loss(logits, tokens, labels) for key, part in self.parts.items()}
        scalars = {f"{key}/{name}": value for key, (_, named) in found.items() for name, value in named.items()}
        return sum(loss for loss, _ in found.values()), scalars  # type: ignore[return-value]

    def end(self) -> None:
        for part in self.parts.values():
            part.end()


def initial(plan: RunPlan, truth: Truth) -> dict[str, Tensor]:
    """Return the decoder's initial weights and the objective's."""
    return {**harness.initial_weights(plan), **{name: value.detach().clone() for name, value in truth.own.items()}}


def train(plan: RunPlan, truth: Truth) -> Told:
    """Train in this process, from the plan's initial weights on all data-parallel ranks' micro-batches."""
    model, gates = ReferenceLlama(plan.shape), _gated(plan, truth)
    load_from_megatron_state(model, harness.initial_weights(plan))
    for layer, multiply in zip(model.layers, gates.hooks, strict=True):
        layer.mlp.down.register_forward_pre_hook(multiply)
    optimizer = make_adamw(model, plan)
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    if truth.own:
        optimizer.add_param_group({"params": list(truth.own.values()), "weight_decay": 0.0, "scale": truth.lr_scale})
    parameters = [*model.parameters(), *truth.own.values()]
    told: dict[str, list[Any]] = {"losses": [], "objective_losses": [], "scalars": [], "grad_norms": []}
    for step in range(plan.batch.train_iters):
        optimizer.zero_grad()
        total = truth.begin(step)
        gates.values = truth.gates(step)
        batches, cross_entropy, scalars = harness.micro_batches(plan, step), 0.0, {}
        for batch in batches:
            logits = model(batch.tokens)
            loss, named = truth.loss(logits, batch.tokens, batch.labels)
            total = total + loss / len(batches)
            plain = F.cross_entropy(logits.detach().flatten(0, 1), batch.labels.flatten())
            cross_entropy += float(plain) / len(batches)
            scalars = {name: scalars.get(name, 0.0) + value / len(batches) for name, value in named.items()}
        total.backward()
        told["grad_norms"].append(float(nn.utils.clip_grad_norm_(parameters, plan.optimizer.gradient_clipping)))
        for group in optimizer.param_groups:
            group["lr"] = harness.learning_rate(plan, step) * group["scale"]
        optimizer.step()
        truth.end()
        told["losses"].append(cross_entropy)
        told["objective_losses"].append(float(total.detach()))
        told["scalars"].append(scalars)
    gates.values = truth.gates(None)
    with torch.no_grad():
        held_out = [float(model.loss(b.tokens, b.labels)) for b in harness.micro_batches(plan, harness.HELD_OUT_STEP)]
    own = {name: value.detach().clone() for name, value in truth.own.items()}
    return Told(**told, evaluation=sum(held_out) / len(held_out), weights={**to_megatron_state(model), **own})


@dataclass
class _Gated:
    """Hooks before the layers' down projections, which multiply by `values`."""

    values: Sequence[Tensor | float]
    hooks: list[Any]


def _gated(plan: RunPlan, truth: Truth) -> _Gated:
    gated = _Gated(truth.gates(None), [])
    gated.hooks = [
        lambda _module, args, n=n: (args[0] * gated.values[n], *args[1:]) for n in range(plan.shape.num_layers)
    ]
    return gated
