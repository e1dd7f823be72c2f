"""The interface of objectives, which turn the decoder's output and a micro-batch into a loss. No torch here.

`Objective` itself is next-token cross entropy, the default; subclasses override what they change. The engine calls
each method on every rank unless its docstring says otherwise. docs/add-a-loss.md shows how to write one.

Shapes, TP-local: s sequence, b micro-batch, v padded vocabulary.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import Argument, Kind, PluginSpec, load, make
from chinchilla_ds.run_plan import DEFAULT_OBJECTIVE, BatchPlan, ModelShape, ParallelLayout, RunPlan

if TYPE_CHECKING:
    from torch import Tensor, nn

OURS = {DEFAULT_OBJECTIVE: "chinchilla_ds.objective:Objective"}
"""Objectives of this package, by name."""
OWN = "objective"
"""Name of the submodule that holds the modules that objectives have registered in a module of the decoder."""
_SCALAR_NAME = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*")


class LabelledTokens(Protocol):
    """The tokens of one forward pass."""

    @property
    def tokens(self) -> "Tensor":
        """Input tokens, [b, s]."""

    @property
    def labels(self) -> "Tensor":
        """The tokens that follow them, [b, s]."""


class DecoderOutput(Protocol):
    """The last stage's output for one micro-batch."""

    @property
    def logits(self) -> "Tensor":
        """Logits for this tensor-parallel rank's part of the vocabulary, [s, b, v/tp], in the model's precision."""

    @property
    def batch(self) -> LabelledTokens:
        """The micro-batch."""

    @property
    def prepared(self) -> Any:
        """What `Objective.prepare` returned for this micro-batch; None in an evaluation."""

    @property
    def companion_logits(self) -> "Tensor | None":
        """Logits of the companion decoder, [s, b, v/tp], without gradients; None if there is no companion."""

    def cross_entropy(self) -> "Tensor":
        """Return the next-token loss of each token, fp32 nats [b, s]; computed only at the first call."""


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """The loss of one micro-batch."""

    loss: "Tensor"
    """The loss to optimise: a scalar, the same on all tensor-parallel ranks."""
    scalars: "Mapping[str, Tensor | float]" = field(default_factory=dict)
    """Further values to report, one for each of `Objective.scalar_names`; they are averaged over micro-batches and
    data-parallel ranks."""


class Companion(Protocol):
    """A second decoder, which is not trained, in the same layout as the trained one."""

    @property
    def plan(self) -> RunPlan:
        """Its own shape, and the trained decoder's layout."""

    @property
    def stage(self) -> "nn.Module":
        """This rank's pipeline stage; its weights may be written until training starts."""

    def logits(self, batches: Sequence[LabelledTokens], /) -> "Sequence[Tensor | None]":
        """Run separate forward passes; return each micro-batch's logits [s, b, v/tp], None on stages without them."""


class Site(Protocol):
    """What an objective is attached to: this rank's stage, before the optimizer is built."""

    @property
    def plan(self) -> RunPlan:
        """The run's plan."""

    @property
    def stage(self) -> Any:
        """The `model.decoder.PipelineStage` with initialised weights; `stage.decoders` are GPTModels."""

    def register(self, parent: "nn.Module", name: str, module: "nn.Module") -> None:
        """Register a module with parameters of the objective in a module of the decoder.

        Their global names are the name of `parent`, then `objective.NAME`, or `objective.PART.NAME` in a sum, by which
        checkpoints carry them between layouts. A parameter that tensor parallelism splits must be marked by
        Megatron-core's `set_tensor_model_parallel_attributes`; a replicated one that is applied to split activations
        must pass through `copy_to_tensor_model_parallel_region`. Under ZeRO-3 a parameter is gathered while its
        module's forward runs.

        Args:
            parent: A module of the decoder on this stage.
            name: Name of the new module within it.
            module: The module with the objective's parameters.

        Raises:
            ConfigError: a parameter's dtype differs from the decoder's, or it has neither one nor two dimensions.
        """

    def partition(self) -> AbstractContextManager[Any]:
        """Return a context in which ZeRO-3 partitions new modules as they are built; without ZeRO-3 it does nothing."""

    def frozen_decoder(self, plan: RunPlan, /, *, partitioned: bool = False) -> Companion:
        """Build a companion with initial weights.

        Args:
            plan: Gives its shape, seed and precision; the layout is always the trained decoder's.
            partitioned: Whether ZeRO-3 partitions it too.

        Raises:
            ConfigError: its vocabulary or sequence length differs, or the layout cannot divide its shape.
        """

    def part(self, name: str, /) -> "Site":
        """Return the site for one objective of a sum."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters of an objective with the same optimizer settings."""

    parameters: "Sequence[nn.Parameter]"
    """Those on this stage; there may be none."""
    lr_scale: float = 1.0
    """Factor by which the step's learning rate is multiplied."""
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """The upcoming optimizer step."""

    number: int
    """Number of steps attempted before it; a resumed run continues the count."""
    gradient_scale: float
    """Factor on the gradients in a micro-batch's backward pass: FP16's loss scale divided by the number of
    micro-batches. A gradient that does not come from the returned loss must be multiplied by it."""


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Memory that an objective takes on the fullest rank, in addition to the decoder's training."""

    states: int = 0
    """Weights, including a companion's, gradients and optimizer states."""
    activations: int = 0
    """Activations of the loss and of a companion during a step."""


class OwnWeights(Protocol):
    """The weights that an objective has registered, read from a checkpoint."""

    def read(self, parent: str, name: str, /) -> "Tensor":
        """Return a whole weight in fp32.

        Args:
            parent: Global name of the module that it was registered in, such as `decoder.layers.0.mlp`.
            name: The registered module's name and the parameter's own, such as `gate.log_alpha`.
        """


class Objective:
    """Next-token cross entropy, and the base class of all other objectives."""

    scalar_names: Sequence[str] = ()
    """Names of the scalars that `loss` reports; metrics call them `objective/NAME`."""
    spec: PluginSpec | None = None
    """The spec that it was made from; None if it was constructed directly."""

    def attach(self, site: Site, /) -> None:
        """Register parameters and hooks on this rank's stage, or build a companion; called once."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return all registered parameters, in groups."""
        return ()

    def companion(self) -> Companion | None:
        """Return a decoder made by `Site.frozen_decoder` that runs in the same passes as the trained one, if any."""
        return None

    def prepare(self, batches: Sequence[LabelledTokens], /, *, step: Step) -> Sequence[Any]:
        """Return what `loss` needs for each micro-batch in addition to logits; unused on stages without a loss.

        It is called before the step's first pass: the place for a companion's separate passes, for collectives, and for
        random draws: 1F1B repeats forward passes in a different order when it recomputes activations.

        Args:
            batches: This data-parallel rank's micro-batches of the step.
            step: Which step it is.
        """
        return [None] * len(batches)

    def loss(self, output: DecoderOutput, /) -> LossValue:
        """Return the loss of one micro-batch. Called on the last stage alone."""
        return LossValue(loss=output.cross_entropy().mean())

    def evaluation_loss(self, output: DecoderOutput, /) -> "Tensor":
        """Return the loss that evaluations and guards use: cross entropy, so that runs remain comparable."""
        return output.cross_entropy().mean()

    @property
    def is_evaluation_loss(self) -> bool:
        """Whether the optimised loss is the evaluation loss, so that one number serves for both."""
        mine = type(self)
        return mine.loss is Objective.loss and mine.evaluation_loss is Objective.evaluation_loss

    def end_step(self, *, skipped: bool) -> None:
        """Update state other than parameters, such as counters. A skipped step has not changed any weight."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state other than parameters as plain JSON data, the same on every rank; checkpoints store it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore what `state_dict` returned."""

    def may_be_absent(self, name: str, /) -> bool:
        """Return whether a parameter of the objective may be absent from the checkpoint that a new run starts from.

        It then keeps its initial values. A resumed run needs all parameters.

        Args:
            name: Global name of the parameter.
        """
        return True

    def folds(self, name: str, /) -> bool:
        """Return whether `fold` absorbs a parameter into the decoder's weights, as export and inference require.

        Args:
            name: Global name of a parameter of the objective.
        """
        return False

    def fold(self, name: str, weight: "Tensor", own: OwnWeights, /) -> "Tensor":
        """Return a weight of the decoder into which the objective's own weights are folded.

        Args:
            name: Global name of the decoder's weight.
            weight: The whole weight, fp32.
            own: The objective's weights.
        """
        return weight

    def flops_per_token(self, shape: ModelShape, /) -> float:
        """Return the model FLOPs per trained token in addition to the decoder's, including a companion's forward pass.

        The planner calls this method and `rank_bytes` before torch is imported.
        """
        return 0.0

    def rank_bytes(self, *, shape: ModelShape, batch: BatchPlan, layout: ParallelLayout) -> RankBytes:
        """Return the memory taken on the fullest rank, in addition to the decoder's training.

        Args:
            shape: The decoder.
            batch: Micro-batch size and number of micro-batches.
            layout: The layout, which divides states and activations.
        """
        return RankBytes()


class Sum(Objective):
    """The sum of several objectives' losses; each keeps parameters, scalars and state under its own name.

    The objectives are keyword arguments; evaluations use the first one's evaluation loss.
    """

    def __init__(self, **parts: Objective) -> None:
        """Combine objectives, given by name.

        Raises:
            ConfigError: there are none.
        """
        if not parts:
            raise ConfigError("a sum of objectives needs at least one")
        self.parts = parts
        self.scalar_names = tuple(f"{key}/{name}" for key, part in parts.items() for name in part.scalar_names)

    def attach(self, site: Site, /) -> None:
        """Attach each part at its own site."""
        for key, part in self.parts.items():
            part.attach(site.part(key))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the groups of all parts."""
        return [group for part in self.parts.values() for group in part.parameter_groups()]

    def companion(self) -> Companion | None:
        """Return the companion, if a part has one.

        Raises:
            ConfigError: several parts have one.
        """
        companions = {key: companion for key, part in self.parts.items() if (companion := part.companion()) is not None}
        if len(companions) > 1:
            raise ConfigError(
                f"objectives {', '.join(companions)} of a sum each have a companion, and only one can run with the "
                "trained decoder: the others can run theirs when a step is prepared"
            )
        return next(iter(companions.values()), None)

    def prepare(self, batches: Sequence[LabelledTokens], /, *, step: Step) -> Sequence[Any]:
        """Return, for each micro-batch, what each part has prepared, by name."""
        prepared = {key: part.prepare(batches, step=step) for key, part in self.parts.items()}
        return [{key: values[index] for key, values in prepared.items()} for index in range(len(batches))]

    def loss(self, output: DecoderOutput, /) -> LossValue:
        """Return the sum of the losses, and the scalars of all parts."""
        values = {key: part.loss(_PartOutput(output, key)) for key, part in self.parts.items()}
        first, *rest = values.values()
        total = first.loss
        for value in rest:
            total = total + value.loss
        scalars = {f"{key}/{name}": scalar for key, value in values.items() for name, scalar in value.scalars.items()}
        return LossValue(loss=total, scalars=scalars)

    def evaluation_loss(self, output: DecoderOutput, /) -> "Tensor":
        """Return the first part's evaluation loss."""
        key, first = next(iter(self.parts.items()))
        return first.evaluation_loss(_PartOutput(output, key))

    def end_step(self, *, skipped: bool) -> None:
        """Call `end_step` of each part."""
        for part in self.parts.values():
            part.end_step(skipped=skipped)

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states, by name."""
        return {key: part.state_dict() for key, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore each part's state."""
        for key, part in self.parts.items():
            part.load_state_dict(state[key])

    def may_be_absent(self, name: str, /) -> bool:
        """Ask the part that the parameter belongs to."""
        key, inner = _without_part(name)
        return self.parts[key].may_be_absent(inner)

    def folds(self, name: str, /) -> bool:
        """Ask the part that the parameter belongs to."""
        key, inner = _without_part(name)
        return self.parts[key].folds(inner)

    def fold(self, name: str, weight: "Tensor", own: OwnWeights, /) -> "Tensor":
        """Fold the parts' weights in, one after the other.

        Args:
            name: Global name of the decoder's weight.
            weight: The whole weight, fp32.
            own: The objectives' weights.
        """
        for key, part in self.parts.items():
            weight = part.fold(name, weight, _PartWeights(own, key))
        return weight

    def flops_per_token(self, shape: ModelShape, /) -> float:
        """Return the sum over all parts."""
        return sum(part.flops_per_token(shape) for part in self.parts.values())

    def rank_bytes(self, *, shape: ModelShape, batch: BatchPlan, layout: ParallelLayout) -> RankBytes:
        """Return the sum over all parts.

        Args:
            shape: The decoder.
            batch: Micro-batch size and number of micro-batches.
            layout: The layout, which divides states and activations.
        """
        parts = [part.rank_bytes(shape=shape, batch=batch, layout=layout) for part in self.parts.values()]
        return RankBytes(states=sum(part.states for part in parts), activations=sum(part.activations for part in parts))


class _PartOutput:
    """A decoder's output, with `prepared` of one objective of a sum."""

    def __init__(self, output: DecoderOutput, key: str) -> None:
        self.logits, self.batch, self.companion_logits = output.logits, output.batch, output.companion_logits
        self.prepared = None if output.prepared is None else output.prepared[key]
        self.cross_entropy = output.cross_entropy


class _PartWeights:
    """The weights of one objective of a sum."""

    def __init__(self, own: OwnWeights, key: str) -> None:
        self._own, self._key = own, key

    def read(self, parent: str, name: str, /) -> "Tensor":
        return self._own.read(parent, f"{self._key}.{name}")


def own_name(parent: str, name: str, /) -> str:
    """Return the global name of what is registered as `name` in the module whose global name is `parent`."""
    return ".".join(filter(None, (parent, OWN, name)))


def is_own(name: str, /) -> bool:
    """Return whether a global name belongs to an objective's weight."""
    return OWN in name.split(".")


def _without_part(name: str) -> tuple[str, str]:
    """Return the part of a sum that an objective's weight belongs to, and its name outside the sum."""
    parent, _, own = f".{name}".partition(f".{OWN}.")
    key, _, rest = own.partition(".")
    return key, own_name(parent.removeprefix("."), rest)


def make_objective(spec: PluginSpec, /) -> Objective:
    """Create the objective that a spec names.

    A plan may come from an untrusted source, so only subclasses of Objective are called.

    Raises:
        ConfigError: there is no such objective, it does not accept these arguments, or a scalar's name is invalid.
    """
    kind = load(Kind.OBJECTIVE, spec.name, ours=OURS)
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ConfigError(f"objective {spec.name!r} is not a subclass of chinchilla_ds.objective.Objective")
    objective: Objective = make(Kind.OBJECTIVE, spec, ours=OURS)
    objective.spec = spec
    if problems := list(_scalar_problems(objective)):
        raise ConfigError(problems)
    return objective


def _scalar_problems(objective: Objective) -> Iterator[str]:
    for name in objective.scalar_names:
        if not _SCALAR_NAME.fullmatch(name):
            what = f"objective {spec_of(objective)}: {name!r} is not a valid name of a scalar"
            yield f"{what}: lower-case letters, digits, _ and /"
    if len(set(objective.scalar_names)) < len(objective.scalar_names):
        yield f"objective {spec_of(objective)} names a scalar twice: {', '.join(objective.scalar_names)}"


def spec_of(objective: Objective, /) -> PluginSpec:
    """Return the name and the arguments of an objective, as plans and checkpoints store them.

    If it was constructed directly, these are its class and, for a dataclass, the fields that are plain data.
    """
    if objective.spec is not None:
        return objective.spec
    kind = type(objective)
    if kind is Objective:
        return PluginSpec(name=DEFAULT_OBJECTIVE)
    fields: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ()
    )
    values = {field.name: getattr(objective, field.name) for field in fields if field.init}
    plain = {name: value for name, value in values.items() if isinstance(value, Argument)}
    return PluginSpec(name=f"{kind.__module__}:{kind.__qualname__.replace('<locals>.', '')}", arguments=plain)
