"""Objectives turn the decoder's output and a micro-batch into a loss: their common interface. No torch here.

`Objective` itself is next-token cross entropy, the default; another one overrides what it changes. The engine calls
every method on every rank unless its docstring says otherwise. docs/add-a-loss.md shows how to write one.

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
"""Name of the module, within a module of the decoder, that holds what objectives have registered there."""
_SCALAR_NAME = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*")


class LabelledTokens(Protocol):
    """Text of one forward pass."""

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
        """[s, b, v/tp], in the model's precision; this tensor-parallel rank's part of the vocabulary."""

    @property
    def batch(self) -> LabelledTokens:
        """The micro-batch."""

    @property
    def prepared(self) -> Any:
        """What `Objective.prepare` returned for it; None in an evaluation."""

    @property
    def companion_logits(self) -> "Tensor | None":
        """Logits [s, b, v/tp] of the companion decoder, without a graph; None where there is none."""

    def cross_entropy(self) -> "Tensor":
        """Return the next-token loss of every token, [b, s] in fp32 nats; computed once, however often it is asked."""


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """The loss of one micro-batch."""

    loss: "Tensor"
    """The optimised loss: a scalar, equal on all tensor-parallel ranks."""
    scalars: "Mapping[str, Tensor | float]" = field(default_factory=dict)
    """What is reported beside it, one value for each of `Objective.scalar_names`; means over micro-batches and
    data-parallel ranks."""


class Companion(Protocol):
    """A decoder that is not trained, cut as the trained one is."""

    @property
    def plan(self) -> RunPlan:
        """Its shape, and the trained one's layout."""

    @property
    def stage(self) -> "nn.Module":
        """This rank's part, whose weights may be written until training begins."""

    def logits(self, batches: Sequence[LabelledTokens], /) -> "Sequence[Tensor | None]":
        """Run passes of its own; return the logits [s, b, v/tp] of every micro-batch, None on stages without them."""


class Site(Protocol):
    """Where an objective is attached: this rank's stage, before the optimizer is built."""

    @property
    def plan(self) -> RunPlan:
        """The run's plan."""

    @property
    def stage(self) -> Any:
        """The `model.decoder.PipelineStage`, its weights initialised; `stage.decoders` are GPTModels."""

    def register(self, parent: "nn.Module", name: str, module: "nn.Module") -> None:
        """Put a module with parameters of the objective's into a module of the decoder.

        Their global names are those of `parent`, then `objective.NAME`, in a sum `objective.PART.NAME`: so checkpoints
        carry them from layout to layout. Where tensor parallelism cuts a parameter, megatron-core's
        `set_tensor_model_parallel_attributes` says so; a replica that is used on what is cut passes through
        `copy_to_tensor_model_parallel_region`. Under ZeRO-3 a parameter is whole while its module's forward runs.

        Args:
            parent: a module of the decoder on this stage.
            name: the module's name within it.
            module: the module with the objective's parameters.

        Raises:
            ConfigError: a parameter has another dtype than the decoder's, or neither one nor two dimensions.
        """

    def partition(self) -> AbstractContextManager[Any]:
        """Return a context in which new modules are partitioned at once under ZeRO-3; one that does nothing else."""

    def frozen_decoder(self, plan: RunPlan, /, *, partitioned: bool = False) -> Companion:
        """Build a companion with initial weights.

        Args:
            plan: Its shape, seed and precision; its layout is that of the trained one.
            partitioned: Whether ZeRO-3 partitions it too.

        Raises:
            ConfigError: its vocabulary or sequence length is another, or the layout cannot cut its shape.
        """

    def part(self, name: str, /) -> "Site":
        """Return the site of one objective of a sum."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters of an objective that are optimised alike."""

    parameters: "Sequence[nn.Parameter]"
    """This stage's; there may be none."""
    lr_scale: float = 1.0
    """Factor of the step's learning rate."""
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """The optimizer step that is about to be taken."""

    number: int
    """Steps tried before it; the same when a run is resumed."""
    gradient_scale: float
    """Factor of the gradients within one micro-batch's backward pass: FP16's loss scale over the number of
    micro-batches. What gives a parameter a gradient past the loss must carry it."""


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """What an objective keeps on the fullest rank beside the decoder's own training."""

    states: int = 0
    """Weights, a companion's among them, gradients and optimizer states."""
    activations: int = 0
    """What the loss and a companion keep during a step."""


class OwnWeights(Protocol):
    """The weights that an objective has registered, as a checkpoint holds them."""

    def read(self, parent: str, name: str, /) -> "Tensor":
        """Return a whole weight in fp32.

        Args:
            parent: Global name of the module that it was registered in, such as `decoder.layers.0.mlp`.
            name: What it was registered as, and its own name: `gate.log_alpha`.
        """


class Objective:
    """Next-token cross entropy, and the base of every other objective."""

    scalar_names: Sequence[str] = ()
    """Names of what `loss` reports; metrics call them `objective/NAME`."""
    spec: PluginSpec | None = None
    """What it was made from; None where it was made by hand."""

    def attach(self, site: Site, /) -> None:
        """Register parameters and hooks in this rank's stage, or build a companion. Called once."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return all parameters that were registered, in groups."""
        return ()

    def companion(self) -> Companion | None:
        """Return a decoder of `Site.frozen_decoder` that is to run beside the trained one, in the same passes."""
        return None

    def prepare(self, batches: Sequence[LabelledTokens], /, *, step: Step) -> Sequence[Any]:
        """Return what `loss` needs of each micro-batch besides logits; on stages without a loss it is not read.

        Called before the step's first pass: the place for passes of a companion's own, for numbers of all ranks, and
        for noise. 1F1B computes passes again in another order, so that noise is drawn here and not in a forward pass.

        Args:
            batches: This data-parallel rank's micro-batches of the step.
            step: Which step it is.
        """
        return [None] * len(batches)

    def loss(self, output: DecoderOutput, /) -> LossValue:
        """Return the loss of one micro-batch. Called on the last stage alone."""
        return LossValue(loss=output.cross_entropy().mean())

    def evaluation_loss(self, output: DecoderOutput, /) -> "Tensor":
        """Return what text is measured by, held-out text too: cross entropy, so that runs compare and guards see it."""
        return output.cross_entropy().mean()

    @property
    def is_evaluation_loss(self) -> bool:
        """Whether what is optimised is what text is measured by, so that one number tells both."""
        mine = type(self)
        return mine.loss is Objective.loss and mine.evaluation_loss is Objective.evaluation_loss

    def end_step(self, *, skipped: bool) -> None:
        """Update state that is not a parameter: multipliers, counters. A skipped step has changed no weight."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state besides parameters as plain JSON data, the same on every rank; every checkpoint holds it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take what `state_dict` returned."""

    def may_be_absent(self, name: str, /) -> bool:
        """Return whether one of the objective's parameters may keep its initial values in a new run.

        That is where the checkpoint whose weights the run begins with lacks it. A run that is resumed needs all.

        Args:
            name: Its global name.
        """
        return True

    def folds(self, name: str, /) -> bool:
        """Return whether a decoder with `fold`ed weights can do without a parameter: only then is it exported or asked.

        Args:
            name: Global name of one of the objective's own.
        """
        return False

    def fold(self, name: str, weight: "Tensor", own: OwnWeights, /) -> "Tensor":
        """Return a weight of the decoder that does what it did together with the objective's own weights.

        Args:
            name: Global name of the decoder's weight.
            weight: All of it, in fp32.
            own: The objective's weights.
        """
        return weight

    def flops_per_token(self, shape: ModelShape, /) -> float:
        """Return model FLOPs per trained token beside the decoder's, a companion's forward pass among them.

        The planner asks, before torch is imported, as it does for `rank_bytes`.
        """
        return 0.0

    def rank_bytes(self, *, shape: ModelShape, batch: BatchPlan, layout: ParallelLayout) -> RankBytes:
        """Return what is kept on the fullest rank beside the decoder's own training.

        Args:
            shape: The decoder.
            batch: Its micro-batch size and number of micro-batches.
            layout: What states and activations are divided by.
        """
        return RankBytes()


class Sum(Objective):
    """The sum of several objectives' losses, each with parameters, scalars and state under its own name.

    Give it keyword arguments; text is measured as by the first.
    """

    def __init__(self, **parts: Objective) -> None:
        """Take the objectives by their names.

        Raises:
            ConfigError: there are none.
        """
        if not parts:
            raise ConfigError("a sum of objectives needs at least one")
        self.parts = parts
        self.scalar_names = tuple(f"{key}/{name}" for key, part in parts.items() for name in part.scalar_names)

    def attach(self, site: Site, /) -> None:
        """Attach every part at a site of its own."""
        for key, part in self.parts.items():
            part.attach(site.part(key))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the groups of all parts."""
        return [group for part in self.parts.values() for group in part.parameter_groups()]

    def companion(self) -> Companion | None:
        """Return the one companion that there is.

        Raises:
            ConfigError: several parts have one.
        """
        companions = {key: companion for key, part in self.parts.items() if (companion := part.companion()) is not None}
        if len(companions) > 1:
            raise ConfigError(
                f"objectives {', '.join(companions)} of a sum have a companion each, and one alone can run beside the "
                "trained decoder: the others can run theirs when a step is prepared"
            )
        return next(iter(companions.values()), None)

    def prepare(self, batches: Sequence[LabelledTokens], /, *, step: Step) -> Sequence[Any]:
        """Return, for each micro-batch, what every part has prepared by its name."""
        prepared = {key: part.prepare(batches, step=step) for key, part in self.parts.items()}
        return [{key: values[index] for key, values in prepared.items()} for index in range(len(batches))]

    def loss(self, output: DecoderOutput, /) -> LossValue:
        """Return the sum, and the scalars of all parts."""
        values = {key: part.loss(_PartOutput(output, key)) for key, part in self.parts.items()}
        first, *rest = values.values()
        total = first.loss
        for value in rest:
            total = total + value.loss
        scalars = {f"{key}/{name}": scalar for key, value in values.items() for name, scalar in value.scalars.items()}
        return LossValue(loss=total, scalars=scalars)

    def evaluation_loss(self, output: DecoderOutput, /) -> "Tensor":
        """Return the first part's."""
        key, first = next(iter(self.parts.items()))
        return first.evaluation_loss(_PartOutput(output, key))

    def end_step(self, *, skipped: bool) -> None:
        """Tell every part."""
        for part in self.parts.values():
            part.end_step(skipped=skipped)

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states by their names."""
        return {key: part.state_dict() for key, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Give every part its state."""
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
        """Fold the parts' weights one after the other.

        Args:
            name: global name of the decoder's weight.
            weight: all of it, in fp32.
            own: the objectives' weights.
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
            shape: the decoder.
            batch: its micro-batch size and number of micro-batches.
            layout: the layout that divides states and activations.
        """
        parts = [part.rank_bytes(shape=shape, batch=batch, layout=layout) for part in self.parts.values()]
        return RankBytes(states=sum(part.states for part in parts), activations=sum(part.activations for part in parts))


class _PartOutput:
    """A decoder's output with what one objective of a sum has prepared."""

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
    """Return the global name of what was registered as `name` in the module of global name `parent`."""
    return ".".join(filter(None, (parent, OWN, name)))


def is_own(name: str, /) -> bool:
    """Return whether a global name is that of an objective's weight."""
    return OWN in name.split(".")


def _without_part(name: str) -> tuple[str, str]:
    """Return which part of a sum an objective's weight belongs to, and the name that it would have without the sum."""
    parent, _, own = f".{name}".partition(f".{OWN}.")
    key, _, rest = own.partition(".")
    return key, own_name(parent.removeprefix("."), rest)


def make_objective(spec: PluginSpec, /) -> Objective:
    """Make what a spec names.

    A plan may come from elsewhere, so nothing is called that it names but subclasses of Objective.

    Raises:
        ConfigError: there is no such objective, it does not take these arguments, or it names a scalar in vain.
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
    """Return the name and the arguments of an objective, as plans and checkpoints hold them.

    Of one that was made by hand they are its class and, of a dataclass, the fields that are plain data.
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
