"""Where an objective is attached to a training engine: its parameters go into the stage."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from chinchilla_ds.engine.frozen_decoder import CompanionDecoder, companion_plan
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.model.dtypes import DTYPES
from chinchilla_ds.model.initialization import full_shape, global_named_parameters
from chinchilla_ds.objective import OWN, Objective, is_own, spec_of
from chinchilla_ds.run_plan import RunPlan

Partition = Callable[[], AbstractContextManager[Any]]
"""Creates a context in which new modules are partitioned at once under ZeRO-3; a no-op in other stages."""


class AttachmentSite:
    """This rank's stage as an objective sees it: a `chinchilla_ds.objective.Site`."""

    def __init__(
        self,
        stage: PipelineStage,
        *,
        plan: RunPlan,
        partition: Partition,
        build_frozen: Callable[[RunPlan, bool], CompanionDecoder],
        path: tuple[str, ...] = (),
    ) -> None:
        """Take the stage, whose weights are initialised.

        Args:
            stage: This rank's stage.
            plan: The run's plan.
            partition: ZeRO-3's partitioning context.
            build_frozen: Builds a companion from a plan, partitioned or not.
            path: Names of the parts of sums that lead to the objective.
        """
        self.stage, self.plan, self.partition = stage, plan, partition
        self._build_frozen, self._path = build_frozen, path

    def register(self, parent: nn.Module, name: str, module: nn.Module) -> None:
        """Add a module with the objective's parameters to a module of the decoder.

        Args:
            parent: a module of the decoder on this stage.
            name: the module's name within it.
            module: the module with the objective's parameters.

        Raises:
            ConfigError: a parameter's dtype differs from the decoder's, or it has neither one nor two dimensions.
        """
        assert any(parent is known for chunk in self.stage.decoders for known in chunk.modules()), (
            f"{type(parent).__name__} is not a module of this rank's decoders"
        )
        if problems := list(_problems(name, module, plan=self.plan)):
            raise ConfigError(problems)
        holder = parent
        for key in (OWN, *self._path):
            if not hasattr(holder, key):
                holder.add_module(key, nn.Module())
            holder = getattr(holder, key)
        assert not hasattr(holder, name), f"{name} is registered already"
        holder.add_module(name, module)

    def frozen_decoder(self, plan: RunPlan, /, *, partitioned: bool = False) -> CompanionDecoder:
        """Build a companion with initial weights.

        Raises:
            ConfigError: its vocabulary or sequence length differs, or the layout cannot split its shape.
        """
        return self._build_frozen(companion_plan(plan, beside=self.plan), partitioned)

    def part(self, name: str, /) -> "AttachmentSite":
        """Return the site of one objective of a sum."""
        return AttachmentSite(
            self.stage,
            plan=self.plan,
            partition=self.partition,
            build_frozen=self._build_frozen,
            path=(*self._path, name),
        )


def _problems(name: str, module: nn.Module, *, plan: RunPlan) -> Iterable[str]:
    dtype = DTYPES[plan.precision]
    for inner, parameter in module.named_parameters():
        what, shape = f"the objective's parameter {name}.{inner}", full_shape(parameter)
        if parameter.dtype != dtype:
            yield (
                f"{what} is {_name(parameter.dtype)}, and ZeRO supports only one type of parameters: make it "
                f"{_name(dtype)} as the decoder's are, and compute with it in float32"
            )
        if len(shape) not in (1, 2):
            yield f"{what} has {len(shape)} dimensions, and a checkpoint holds those of one or two"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def own_groups(objective: Objective, stage: PipelineStage) -> list[dict[str, Any]]:
    """Return the optimizer's groups of an objective's parameters on this stage; there may be none.

    Raises:
        ConfigError: a parameter is in no group, in two, or was never registered.
    """
    groups = objective.parameter_groups()
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    registered = {id(parameter): name for name, parameter in own_parameters(stage)}
    trained = {key for key, parameter in _by_id(stage).items() if parameter.requires_grad}
    problems = [f"{registered[key]} is in no parameter group" for key in sorted(trained - set(grouped))]
    problems += ["a parameter is in two groups"] if len(set(grouped)) < len(grouped) else []
    problems += ["a parameter of a group was never registered"] if set(grouped) - registered.keys() else []
    if problems:
        raise ConfigError([f"objective {spec_of(objective)}: {problem}" for problem in problems])
    return [
        {"params": list(group.parameters), "weight_decay": group.weight_decay, "lr_scale": group.lr_scale}
        for group in groups
        if group.parameters
    ]


def own_parameters(stage: PipelineStage) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that objectives have registered on this stage, by global name."""
    return [(name, parameter) for name, parameter in global_named_parameters(stage) if is_own(name)]


def _by_id(stage: PipelineStage) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for _, parameter in own_parameters(stage)}
