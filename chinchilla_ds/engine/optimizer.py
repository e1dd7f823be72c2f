"""The torch optimizer that an `OptimizerSpec` describes, over the weights of a pipeline stage."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.model.initialization import full_shape, global_named_parameters
from chinchilla_ds.objective import is_own
from chinchilla_ds.optimizers import OptimizerSpec, StepCount, optimizer_of
from chinchilla_ds.plugins import Kind, load
from chinchilla_ds.run_plan import ADAMW, Offload, OptimizerPlan, RunPlan
from chinchilla_ds.weights import kind_of


def make_optimizer(
    stage: PipelineStage, *, plan: RunPlan, more_groups: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """Return the plan's optimizer.

    Its learning rate is 0 until `train_step` sets it, so that the step that DeepSpeed takes to allocate states changes
    no weight.

    Args:
        stage: This rank's stage.
        plan: The run's plan.
        more_groups: Parameter groups of an objective, added to the optimizer's last group; `lr_scale` is a factor
            of the learning rate.

    Raises:
        ConfigError: it cannot be built, or differs from its spec.
    """
    spec = optimizer_of(plan.optimizer)
    if plan.optimizer.plugin != ADAMW and (problems := list(_broken_promises(spec, plan))):
        raise ConfigError([f"optimizer {plan.optimizer.plugin}: {problem}" for problem in problems])
    weight_decay = plan.optimizer.weight_decay if "weight_decay" in spec.settings else 0.0
    groups = parameter_groups(stage, spec=spec, weight_decay=weight_decay)
    return _build(spec, [*groups, *({**spec.groups[-1].settings, **group} for group in more_groups)], plan)


def _build(spec: OptimizerSpec, groups: list[dict[str, Any]], plan: RunPlan) -> torch.optim.Optimizer:
    build = load(Kind.OPTIMIZER, spec.builder)
    keywords = {"plan": plan.optimizer, "offload": plan.layout.offload_optimizer, **spec.arguments}
    try:
        inspect.signature(build).bind(groups, **keywords)
    except TypeError as error:
        raise ConfigError(
            f"optimizer {plan.optimizer.plugin}: {spec.builder} takes {inspect.signature(build)}, and is called with "
            f"groups, {', '.join(keywords)}: {error}"
        ) from None
    optimizer = build(groups, **keywords)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer {plan.optimizer.plugin}: {spec.builder} returned a {type(optimizer).__name__}; it must be a "
            "torch.optim.Optimizer"
        )
    return optimizer


def _broken_promises(spec: OptimizerSpec, plan: RunPlan) -> Iterator[str]:
    """Yield the differences of an optimizer from its spec, in one step of a weight without a gradient.

    A checkpoint holds the states that the spec names; any others would be missing in a resumed run.
    """
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.zeros(2)
    optimizer = _build(spec, [{"params": [weight], "weight_decay": 0.0}], plan)
    if rates := [group["lr"] for group in optimizer.param_groups if group["lr"] != 0]:
        yield f"it is built with a learning rate of {rates[0]}, and must be with 0, until the engine sets the plan's"
    optimizer.step()
    state = {name: value for name, value in optimizer.state[weight].items() if value is not None}
    step = state.pop("step", None)
    count = StepCount.NONE if step is None else StepCount.TENSOR if isinstance(step, Tensor) else StepCount.NUMBER
    if count is not spec.step_count:
        yield f"its count of steps is {count}, and its step_count says {spec.step_count}"
    if state.keys() != set(spec.states):
        names = [" and ".join(sorted(some)) or "nothing" for some in (state, spec.states)]
        yield f"it keeps {names[0]} for a weight, and its states are {names[1]}"
    for name in sorted(state.keys() & set(spec.states)):
        value = state[name]
        if not isinstance(value, Tensor) or value.shape != weight.shape or value.dtype != torch.float32:
            yield f"its state {name} is not an FP32 tensor of the weight's shape"


def parameter_groups(stage: PipelineStage, *, spec: OptimizerSpec, weight_decay: float) -> list[dict[str, Any]]:
    """Return torch's groups: for each of the optimizer's groups the weights that `weights.TABLE` decays, then the rest.

    Args:
        stage: Holds the weights.
        spec: Gives the groups of weights.
        weight_decay: Decay of matrices; norms are not decayed.

    Raises:
        ConfigError: no group of the optimizer takes a weight.
    """
    members: dict[tuple[int, bool], list[torch.nn.Parameter]] = {
        (place, is_decayed): [] for place in range(len(spec.groups)) for is_decayed in (True, False)
    }
    for name, parameter in global_named_parameters(stage):
        if is_own(name):  # an objective's, in groups of its own
            continue
        shape, kind = tuple(full_shape(parameter)), kind_of(name)
        assert kind is not None, f"{name} is not in the table of weights"
        place = next((place for place, group in enumerate(spec.groups) if group.takes(name, shape)), None)
        if place is None:
            raise ConfigError(f"no group of the optimizer {spec.title} takes the weight {name} {list(shape)}")
        members[place, kind.is_decayed].append(parameter)
    return [
        {**spec.groups[place].settings, "params": parameters, "weight_decay": weight_decay if is_decayed else 0.0}
        for (place, is_decayed), parameters in members.items()
    ]


def build_adamw(groups: list[dict[str, Any]], *, plan: OptimizerPlan, offload: Offload) -> torch.optim.Optimizer:
    """Return AdamW with decoupled decay: DeepSpeed's CPU kernel for offloaded states, otherwise torch's fused one.

    Args:
        groups: parameter groups of torch.
        plan: the optimizer's plan.
        offload: where its states are kept.
    """
    betas = (plan.beta1, plan.beta2)
    if offload is not Offload.NONE:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(
            groups, lr=0.0, betas=betas, eps=plan.epsilon, adamw_mode=True
        )
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=plan.epsilon, fused=True)


def fresh_state(optimizer: torch.optim.Optimizer, key: Tensor, *, spec: OptimizerSpec) -> dict[str, Any]:
    """Return the states that the optimizer would create before its first step of a tensor.

    Args:
        optimizer: Built from `spec`.
        key: The tensor under which it keeps the states.
        spec: Names the states.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    state: dict[str, Any] = {}
    if isinstance(optimizer, DeepSpeedCPUAdam) or spec.step_count is StepCount.NUMBER:
        state["step"] = 0
    elif spec.step_count is StepCount.TENSOR:
        state["step"] = torch.zeros((), dtype=torch.float32, device=key.device)
    return state | {name: torch.zeros_like(key.detach(), dtype=torch.float32) for name in spec.states}
