"""Optimizers: what planner, engine and checkpoints must know of each. Nothing here imports torch.

An optimizer is a function that returns an `OptimizerSpec`. What runs is named there as `module:function`, and is
imported by the engine alone (`engine.optimizer`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import Kind, PluginSpec, make
from chinchilla_ds.run_plan import ADAM_STATES, Offload, OptimizerPlan, RunPlan

STATE_BYTES = 4
"""Bytes of one value of a state, and of a master weight: both are FP32, in memory and in checkpoints."""


class StepCount(StrEnum):
    """How an optimizer counts the steps of a tensor, under `step` of its state."""

    NONE = "none"
    """It does not."""
    NUMBER = "number"
    TENSOR = "tensor"
    """A tensor without dimensions, in FP32, as in torch's own optimizers."""


def every_weight(name: str, shape: tuple[int, ...], /) -> bool:
    """Take every weight, whatever its global name and its whole shape."""
    return True


@dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """Weights that an optimizer treats alike."""

    takes: Callable[[str, tuple[int, ...]], bool] = every_weight
    """Whether a weight belongs to it, by its global name and its whole shape."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of torch's parameter groups."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """One optimizer with its arguments."""

    title: str
    """Its name in texts: AdamW."""
    builder: str
    """`module:function` of `build(groups, *, plan, offload, **arguments)`, which returns a torch optimizer. `groups`
    are torch's parameter groups with their weight decay; `plan` is the OptimizerPlan, `offload` where states live.
    The learning rate must be 0 until the engine sets it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the builder."""
    states: tuple[str, ...] = ()
    """Keys of the tensors that it keeps for a weight, each of the weight's shape, in FP32, zero before the first step.
    What it does must be the same for any cut of a weight: ZeRO gives each rank a part, flat."""
    step_count: StepCount = StepCount.NONE
    groups: tuple[WeightGroup, ...] = (WeightGroup(),)
    """The first that takes a weight has it; all together must take every weight."""
    settings: tuple[str, ...] = ("weight_decay",)
    """Fields of OptimizerPlan that it reads, beside learning rate and clipping."""
    offload: tuple[Offload, ...] = ()
    """Where else than on the device its step can run with its states."""
    deepspeed_type: str | None = None
    """DeepSpeed's name of it, under optimizer.type; None: DeepSpeed has none."""


def adamw() -> OptimizerSpec:
    """Return AdamW, with decoupled weight decay.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """
    return OptimizerSpec(
        title="AdamW",
        builder="chinchilla_ds.engine.optimizer:build_adamw",
        states=ADAM_STATES,
        step_count=StepCount.TENSOR,
        settings=("weight_decay", "beta1", "beta2", "epsilon"),
        offload=(Offload.CPU, Offload.NVME),
        deepspeed_type="AdamW",
    )


OURS: Mapping[str, str] = {"adamw": "chinchilla_ds.optimizers:adamw"}
"""This package's own, as `module:function`, by the names of the command line."""


def find_optimizer(plugin: PluginSpec, /) -> OptimizerSpec:
    """Return the optimizer of a name, or of `module:function`, with its arguments.

    Raises:
        ConfigError: it cannot be loaded, or is not a function that returns an OptimizerSpec.
    """
    if not isinstance(plugin, PluginSpec):
        raise ConfigError(
            f"`optimizer` is {plugin!r:.80}; it must be a PluginSpec, such as plugins.parse_spec('adamw')"
        )
    spec = make(Kind.OPTIMIZER, plugin, ours=OURS)
    if not isinstance(spec, OptimizerSpec):
        raise ConfigError(
            f"optimizer {plugin} returned a value of type {type(spec).__name__}; it must return an OptimizerSpec"
        )
    return spec


def optimizer_of(plan: OptimizerPlan, /) -> OptimizerSpec:
    """Return the optimizer that a plan names.

    Raises:
        ConfigError: as `find_optimizer`, or it keeps other states than when the plan was made.
    """
    spec = find_optimizer(plan.plugin)
    if spec.states != plan.states:
        raise ConfigError(
            f"optimizer {plan.plugin} keeps {_listed(spec.states)} for a weight, and kept {_listed(plan.states)} when "
            "the plan was made: make a new plan, or install the version that it was made with"
        )
    return spec


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "nothing"


def state_bytes_per_param(plan: OptimizerPlan, /) -> int:
    """Return the bytes of a master weight and its states: what ZeRO partitions, and what a checkpoint holds."""
    return STATE_BYTES * (1 + len(plan.states))


def checkpoint_bytes(plan: RunPlan, /) -> int:
    """Return the bytes of a checkpoint's tensors."""
    return state_bytes_per_param(plan.optimizer) * plan.num_params
