"""The fastest parallel layout that fits: every legal layout, its memory and its step time.

Nothing is skipped by a rule of thumb. Memory and time are sums of parts, each of which depends on few of a layout's
fields; every part is computed once. A layout whose training state alone exceeds the device is refused without looking
at its activations, which can only add to it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chinchilla_ds.budget.deepspeed_json.fields import overlaps_reduction
from chinchilla_ds.budget.layout.space import (
    LayoutGroup,
    LayoutRequest,
    Rejection,
    States,
    Tally,
    groups,
    label,
    make_batch,
)
from chinchilla_ds.budget.memory.activations import ActivationBytes, activation_bytes
from chinchilla_ds.budget.memory.peak import CPU, estimate_memory, gradients_before, margin_bytes, peak_bytes
from chinchilla_ds.budget.memory.states import StateBytes, notable_stages, state_bytes
from chinchilla_ds.budget.speed.devices import DEVICES, Device
from chinchilla_ds.budget.speed.rates import Machine, make_machine
from chinchilla_ds.budget.speed.step_time import (
    DataParallelTime,
    MicroBatchTime,
    OptimizerTime,
    Parts,
    combine,
    data_parallel_time,
    micro_batch_time,
    optimizer_time,
    to_step_time,
)
from chinchilla_ds.errors import ConfigError, LayoutError, did_you_mean
from chinchilla_ds.run_plan import BatchPlan, MemoryBytes, Offload, ParallelLayout, Recompute, StepTime
from chinchilla_ds.units import format_bytes

__all__ = ["Candidate", "LayoutRequest", "LayoutSearch", "Rejection", "search_layouts"]

TIE = 1.005
"""Layouts whose times lie within this factor count as equally fast; the simplest of them wins."""
ZERO3_TIE = 1.03
"""The same where ZeRO-3 is compared with lower stages: its traffic must hide behind computation to the share that
`speed.step_time` assumes, so the step must be faster by more than that is uncertain."""
MAX_RUNNERS_UP = 4
MAX_NEIGHBOURS = 128
"""Numbers of devices that are tried on either side of one without a legal layout."""
MAX_DOUBLINGS = 10
"""Doublings after which the search for a sufficient cluster stops: 1024 times the requested one."""
_MEMORY_RULE = "memory of the device is exceeded"
_HOST_RULE = "memory of the host is exceeded"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout that fits."""

    layout: ParallelLayout
    batch: BatchPlan
    memory: MemoryBytes
    step_time: StepTime | None
    """None: the device's rates are unknown."""


@dataclass(frozen=True, kw_only=True)
class LayoutSearch:
    """The result of a search."""

    best: Candidate
    runners_up: tuple[Candidate, ...]
    """The fastest of each other family of TP, PP and ZeRO stage, fastest first."""
    rejected: tuple[Rejection, ...]
    """Layouts refused by a rule or for their memory, most layouts first."""
    num_considered: int
    num_legal: int
    """Layouts that the engine can build."""
    num_fitting: int


class _Fit(NamedTuple):
    """A layout that fits, in the order of preference among equally fast ones: simplest first."""

    simplicity: tuple[int, ...]
    total_s: float
    group: LayoutGroup
    states: States
    recompute: Recompute
    micro_batch_size: int
    parts: Parts | None


def search_layouts(request: LayoutRequest, /) -> LayoutSearch:
    """Return the fastest layout that fits the device, the runners-up and the refusals.

    Among layouts within 0.5 % of the fastest, the simplest wins: no offload, less recomputation, a lower ZeRO stage,
    less tensor parallelism, fewer stages, fewer chunks, no sequence parallelism, a smaller micro-batch. A layout with
    ZeRO-3 wins only if it is 3 % faster than the fastest of a lower stage that is as simple otherwise. Without known
    rates there is no time: then the simplest that fits wins, with the largest micro-batch.

    Raises:
        ConfigError: the device's memory is unknown.
        LayoutError: no layout is legal, or none fits; names what would.
    """
    known = [field.name for field in dataclasses.fields(ParallelLayout)] + ["micro_batch_size"]
    if unknown := sorted(request.fixed.keys() - set(known)):
        raise ConfigError([f"{name} is not a field of a layout{did_you_mean(name, known)}" for name in unknown])
    capacity = request.device.memory_bytes
    if capacity is None:
        raise ConfigError(
            f"the memory of device {request.device.name} is not known, so no layout can be chosen for it; give "
            "memory_bytes in a `hardware` file, or name the layout"
        )
    capacity -= request.reserved_bytes
    machine = _machine(request)
    tally = Tally()
    walk = _Walk(request, capacity=capacity, machine=machine, tally=tally)
    fits = [fit for group in groups(request, tally) for fit in walk.fits(group)]
    if walk.num_legal == 0:
        raise LayoutError(_nothing_legal(request, tally))
    if not fits:
        raise LayoutError(_nothing_fits(request, capacity))
    best = _best(fits)
    return LayoutSearch(
        best=_candidate(best, request, machine),
        runners_up=tuple(_candidate(fit, request, machine) for fit in _runners_up(fits, best)),
        rejected=tally.rejections(),
        num_considered=tally.considered,
        num_legal=walk.num_legal,
        num_fitting=len(fits),
    )


def _machine(request: LayoutRequest) -> Machine | None:
    """Return the machine, or None if its rates are unknown."""
    try:
        return make_machine(
            device=request.device,
            precision=request.precision,
            world_size=request.world_size,
            devices_per_node=request.devices_per_node,
        )
    except ConfigError:
        return None


def _best(fits: list[_Fit]) -> _Fit:
    best = _simplest(fits)
    if best.states.zero_stage < 3:
        return best
    others = [fit for fit in fits if fit.states.zero_stage < 3 and fit.simplicity[:2] <= best.simplicity[:2]]
    other = _simplest(others) if others else best
    return other if other.total_s <= best.total_s * ZERO3_TIE else best


def _simplest(fits: list[_Fit]) -> _Fit:
    """Return the simplest of the fits that are as fast as the fastest."""
    limit = min(fit.total_s for fit in fits) * TIE
    return min((fit for fit in fits if fit.total_s <= limit), key=lambda fit: (fit.simplicity, fit.total_s))


def _runners_up(fits: list[_Fit], best: _Fit) -> list[_Fit]:
    families: dict[tuple[int, int, int], list[_Fit]] = {}
    for fit in fits:
        families.setdefault((fit.group.tensor, fit.group.pipeline, fit.states.zero_stage), []).append(fit)
    del families[best.group.tensor, best.group.pipeline, best.states.zero_stage]
    first = [_best(family) for family in families.values()]
    return sorted(first, key=lambda fit: (fit.total_s, fit.simplicity))[:MAX_RUNNERS_UP]


def _candidate(fit: _Fit, request: LayoutRequest, machine: Machine | None) -> Candidate:
    layout = fit.group.layout(fit.states, fit.recompute)
    batch = make_batch(request, data=fit.group.data, micro_batch_size=fit.micro_batch_size)
    time = None
    if machine is not None and fit.parts is not None:
        time = to_step_time(
            fit.parts,
            shape=request.shape,
            recompute=fit.recompute,
            batch=batch,
            world_size=request.world_size,
            machine=machine,
        )
    memory = estimate_memory(
        shape=request.shape,
        layout=layout,
        batch=batch,
        precision=request.precision,
        device=request.device.kind,
        optimizer_states=len(request.optimizer.states),
    )
    return Candidate(layout=layout, batch=batch, memory=memory, step_time=time)


class _Walk:
    """Memory and time of one group of layouts after the other; parts that groups share are kept."""

    def __init__(self, request: LayoutRequest, *, capacity: float, machine: Machine | None, tally: Tally) -> None:
        self.request, self.capacity, self.machine, self.tally = request, capacity, machine, tally
        self.num_legal = 0
        self._collectives: dict[tuple[int, int, int, bool], DataParallelTime] = {}
        self._optimizers: dict[tuple[int, int, States], OptimizerTime] = {}
        self._states: dict[tuple[int, int, States, bool], tuple[StateBytes, ...]] = {}
        self._micro: dict[tuple[int, int, bool, Recompute, int], MicroBatchTime] = {}

    def fits(self, group: LayoutGroup) -> Iterator[_Fit]:
        """Yield the group's layouts that fit."""
        self.num_legal += len(group.states) * len(group.recomputes) * len(group.micro_batch_sizes)
        nothing = (_NO_ACTIVATIONS,) * len(self._stages(group))
        for size in group.micro_batch_sizes:
            micro_batches = self.request.global_batch_size // group.data // size
            fitting = []
            for states in group.states:
                held = self._held(group, states, micro_batches)
                if self._exceeds_host(held):
                    self._refuse_host(group, states, size, held)
                elif (least := self._total(held, nothing)) > self.capacity:
                    self._refuse(group, states, group.recomputes[0], size, least, count=len(group.recomputes))
                else:
                    fitting.append((states, held))
            for recompute in group.recomputes if fitting else ():
                saved = self._activation_bytes(group, recompute, size, micro_batches)
                for states, held in fitting:
                    total = self._total(held, saved)
                    if total > self.capacity:
                        self._refuse(group, states, recompute, size, total)
                    else:
                        yield self._fit(group, states, recompute, size, micro_batches)

    def needs(self, group: LayoutGroup) -> Iterator[tuple[int, str]]:
        """Yield the bytes that each of the group's layouts needs, and its name."""
        for size in group.micro_batch_sizes:
            micro_batches = self.request.global_batch_size // group.data // size
            for recompute in group.recomputes:
                saved = self._activation_bytes(group, recompute, size, micro_batches)
                for states in group.states:
                    held = self._held(group, states, micro_batches)
                    if not self._exceeds_host(held):
                        name = label(group.layout(states, recompute), micro_batch_size=size)
                        yield self._total(held, saved), name

    def _stages(self, group: LayoutGroup) -> tuple[int, ...]:
        """Return the stages of which one is the fullest, as in `budget.memory.peak.estimate_memory`."""
        return notable_stages(num_layers=self.request.shape.num_layers, pipeline=group.pipeline)

    def _total(self, held: Sequence[tuple[StateBytes, int]], saved: Sequence[ActivationBytes]) -> int:
        """Return the peak of the fullest rank, from the states of the stages that can be the fullest."""
        tensors = 0
        for (state, before), activations in zip(held, saved, strict=True):
            tensors = max(tensors, peak_bytes(state=state, activations=activations, gradients_before=before))
        return tensors + margin_bytes(tensors, device=self.request.device.kind)

    def _exceeds_host(self, held: Sequence[tuple[StateBytes, int]]) -> bool:
        room = self.request.device.host_memory_bytes
        return room is not None and _host_bytes(held) > room

    def _refuse_host(
        self, group: LayoutGroup, states: States, size: int, held: Sequence[tuple[StateBytes, int]]
    ) -> None:
        def example() -> str:
            name = label(group.layout(states, group.recomputes[0]), micro_batch_size=size)
            room = format_bytes(self.request.device.host_memory_bytes or 0)
            return f"{name}: offloads {format_bytes(_host_bytes(held))} per device of {room}"

        self.tally.refuse_by(rule=_HOST_RULE, count=len(group.recomputes), example=example)

    def _refuse(
        self, group: LayoutGroup, states: States, recompute: Recompute, size: int, total: float, *, count: int = 1
    ) -> None:
        def example() -> str:
            name = label(group.layout(states, recompute), micro_batch_size=size)
            return f"{name}: needs {format_bytes(total)} of {format_bytes(self.capacity)}"

        self.tally.refuse_by(rule=_MEMORY_RULE, count=count, example=example)

    def _fit(self, group: LayoutGroup, states: States, recompute: Recompute, size: int, micro_batches: int) -> _Fit:
        parts = None
        if self.machine is not None:
            parts = combine(
                micro=self._micro_batch_time(group, recompute, size, self.machine),
                collectives=self._collective_time(group, states, self.machine),
                optimizer=self._optimizer_time(group, states, self.machine),
                virtual=group.virtual,
                pipeline=group.pipeline,
                micro_batches=micro_batches,
            )
        offloads = (states.offload_optimizer is not Offload.NONE) + (states.offload_param is not Offload.NONE)
        simplicity = (
            offloads,
            _RECOMPUTE_ORDER[recompute],
            states.zero_stage,
            group.tensor,
            group.pipeline,
            group.virtual,
            int(group.sequence_parallel),
            size if parts else -size,
        )
        return _Fit(simplicity, parts.total_s if parts else 0.0, group, states, recompute, size, parts)

    def _held(self, group: LayoutGroup, states: States, micro_batches: int) -> list[tuple[StateBytes, int]]:
        """Return the training state of a rank of each of `_stages`, and its gradients at the fullest moment."""
        return [
            (
                state,
                gradients_before(
                    state.gradients,
                    zero_stage=states.zero_stage,
                    pipeline=group.pipeline,
                    virtual=group.virtual,
                    micro_batches=micro_batches,
                    stage=stage,
                ),
            )
            for stage, state in zip(self._stages(group), self._state_bytes(group, states), strict=True)
        ]

    def _state_bytes(self, group: LayoutGroup, states: States) -> tuple[StateBytes, ...]:
        overlaps = self._overlaps(group, states)
        key = group.tensor, group.pipeline, states, overlaps
        if key not in self._states:
            self._states[key] = tuple(
                state_bytes(
                    shape=self.request.shape,
                    tensor=group.tensor,
                    pipeline=group.pipeline,
                    data=group.data,
                    precision=self.request.precision,
                    stage=stage,
                    optimizer_states=len(self.request.optimizer.states),
                    overlaps=overlaps,
                    **states._asdict(),
                )
                for stage in self._stages(group)
            )
        return self._states[key]

    def _overlaps(self, group: LayoutGroup, states: States) -> bool:
        return overlaps_reduction(
            zero_stage=states.zero_stage,
            data=group.data,
            virtual=group.virtual,
            offload_optimizer=states.offload_optimizer,
            device=self.request.device.kind,
        )

    def _activation_bytes(
        self, group: LayoutGroup, recompute: Recompute, size: int, micro_batches: int
    ) -> tuple[ActivationBytes, ...]:
        return tuple(
            activation_bytes(
                shape=self.request.shape,
                tensor=group.tensor,
                pipeline=group.pipeline,
                virtual=group.virtual,
                sequence_parallel=group.sequence_parallel,
                recompute=recompute,
                micro_batch_size=size,
                gradient_accumulation_steps=micro_batches,
                precision=self.request.precision,
                on_cpu=self.request.device.kind == CPU,
                stage=stage,
            )
            for stage in self._stages(group)
        )

    def _micro_batch_time(
        self, group: LayoutGroup, recompute: Recompute, size: int, machine: Machine
    ) -> MicroBatchTime:
        key = group.tensor, group.pipeline, group.sequence_parallel, recompute, size
        if key not in self._micro:
            self._micro[key] = micro_batch_time(
                shape=self.request.shape,
                tensor=group.tensor,
                pipeline=group.pipeline,
                data=group.data,
                sequence_parallel=group.sequence_parallel,
                recompute=recompute,
                micro_batch_size=size,
                precision=self.request.precision,
                machine=machine,
            )
        return self._micro[key]

    def _collective_time(self, group: LayoutGroup, states: States, machine: Machine) -> DataParallelTime:
        overlaps = self._overlaps(group, states)
        key = group.tensor, group.pipeline, states.zero_stage, overlaps
        if key not in self._collectives:
            self._collectives[key] = data_parallel_time(
                shape=self.request.shape,
                tensor=group.tensor,
                pipeline=group.pipeline,
                data=group.data,
                zero_stage=states.zero_stage,
                precision=self.request.precision,
                machine=machine,
                overlaps=overlaps,
            )
        return self._collectives[key]

    def _optimizer_time(self, group: LayoutGroup, states: States, machine: Machine) -> OptimizerTime:
        key = group.tensor, group.pipeline, states
        if key not in self._optimizers:
            self._optimizers[key] = optimizer_time(
                shape=self.request.shape,
                tensor=group.tensor,
                pipeline=group.pipeline,
                data=group.data,
                precision=self.request.precision,
                machine=machine,
                optimizer_states=len(self.request.optimizer.states),
                **states._asdict(),
            )
        return self._optimizers[key]


_NO_ACTIVATIONS = ActivationBytes(0, 0, 0, 0, 0)
_RECOMPUTE_ORDER = {recompute: order for order, recompute in enumerate(Recompute)}


def _host_bytes(held: Sequence[tuple[StateBytes, int]]) -> int:
    """Return the CPU memory of a rank's offloaded states, for the stage that has the most."""
    return max(state.host for state, _ in held)


def _nothing_legal(request: LayoutRequest, tally: Tally) -> list[str]:
    given = ", ".join(f"{name} {value}" for name, value in request.fixed.items())
    cluster = f"{request.world_size} x {request.device.name}, a batch of {request.global_batch_size} sequences"
    first = f"no layout is legal for {cluster}{f', {given}' if given else ''}; the rules that refuse them:"
    works = _nearest_counts(request)
    nearest = [f"nearest numbers of devices with a layout: {' and '.join(map(str, works))}"] if works else []
    return [first, *(f"{rejection.reason}: {rejection.example}" for rejection in tally.rejections()), *nearest]


def _nearest_counts(request: LayoutRequest) -> list[int]:
    """Return the nearest numbers of devices below and above for which a layout is legal, whether or not it fits."""

    def is_legal(count: int) -> bool:
        return any(True for _ in groups(dataclasses.replace(request, world_size=count), Tally()))

    world = request.world_size
    sides = range(world - 1, max(0, world - MAX_NEIGHBOURS - 1), -1), range(world + 1, world + MAX_NEIGHBOURS + 1)
    return [count for side in sides if (count := next(filter(is_legal, side), None)) is not None]


def _nothing_fits(request: LayoutRequest, capacity: int) -> str:
    """Return how far the nearest layout is from fitting, and what would fit."""
    least = _least_need(request)
    if least is None:
        room = format_bytes(request.device.host_memory_bytes or 0)
        return (
            f"no layout fits {request.world_size} x {request.device.name}: what is to be offloaded exceeds the {room} "
            "of host memory per device; nearest: offload less, or more devices"
        )
    need, name = least[0] + request.reserved_bytes, least[1]
    beside = f", the objective's {format_bytes(request.reserved_bytes)} among them" if request.reserved_bytes else ""
    works = []
    if more := _smallest_world_size(request, capacity):
        works.append(f"{more} x {request.device.name}")
    if larger := _smallest_device(need):
        works.append(f"{request.world_size} x {larger.name} ({format_bytes(larger.memory_bytes or 0)})")
    return (
        f"no layout fits {request.world_size} x {request.device.name}: the least that any needs is "
        f"{format_bytes(need)} per device ({name}{beside}), and the device has "
        f"{format_bytes(capacity + request.reserved_bytes)}; "
        + (
            f"smallest that would fit: {' or '.join(works)}"
            if works
            else "no doubling of it and no listed device would fit"
        )
    )


def _least_need(request: LayoutRequest) -> tuple[int, str] | None:
    walk = _Walk(request, capacity=0, machine=None, tally=Tally())
    return min((need for group in groups(request, Tally()) for need in walk.needs(group)), default=None)


def _smallest_world_size(request: LayoutRequest, capacity: int) -> int | None:
    """Return the first doubling of the cluster on which a layout fits the same batch."""
    for doublings in range(1, MAX_DOUBLINGS + 1):
        larger = dataclasses.replace(request, world_size=request.world_size * 2**doublings)
        walk = _Walk(larger, capacity=capacity, machine=None, tally=Tally())
        if any(True for group in groups(larger, Tally()) for _ in walk.fits(group)):
            return larger.world_size
    return None


def _smallest_device(need: int) -> Device | None:
    fitting = [device for device in DEVICES if device.memory_bytes is not None and device.memory_bytes >= need]
    return min(fitting, key=lambda device: device.memory_bytes or 0, default=None)
