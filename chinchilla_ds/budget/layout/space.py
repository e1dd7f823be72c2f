"""Every layout that a search considers, group by group, and which rule refuses the others.

A group shares its tensor and pipeline sizes, its chunks per stage and its sequence parallelism; within it vary ZeRO
stage and offload (`states`), recomputation, and the micro-batch. The rules are those of `budget.layout.rules`, asked
once for all that they depend on, so that a refused group is counted without being walked.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chinchilla_ds.budget.layout.rules import batch_problems, layout_problems, shape_problems, world_size_problems
from chinchilla_ds.budget.speed.devices import Device
from chinchilla_ds.optimizers import OptimizerSpec, adamw
from chinchilla_ds.run_plan import BatchPlan, ModelShape, Offload, ParallelLayout, Precision, Recompute

ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class LayoutRequest:
    """The problem that a layout is searched for."""

    shape: ModelShape
    precision: Precision
    global_batch_size: int
    """Sequences per optimizer step."""
    device: Device
    world_size: int
    devices_per_node: int | None = None
    """Devices that the fast link joins; None: the device's own number."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ParallelLayout, or micro_batch_size, that are fixed."""
    allow_offload: tuple[Offload, ...] = (Offload.NONE, Offload.CPU)
    """Where states may be kept; NVMe only on request."""
    optimizer: OptimizerSpec = field(default_factory=adamw)
    train_iters: int = 1
    """Optimizer steps of the run; written into the batch, not part of the search."""
    reserved_bytes: int = 0
    """Bytes of every device's memory that are reserved for an objective."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Layouts that one rule refuses."""

    reason: str
    """The rule, without values."""
    count: int
    example: str
    """One of them, with its values."""


class States(NamedTuple):
    """How training state is kept: the choices that do not affect a micro-batch's time or activations."""

    zero_stage: int
    offload_optimizer: Offload
    offload_param: Offload


@dataclass(frozen=True, kw_only=True)
class LayoutGroup:
    """Legal layouts that share their axes."""

    tensor: int
    pipeline: int
    virtual: int
    data: int
    sequence_parallel: bool
    states: tuple[States, ...]
    recomputes: tuple[Recompute, ...]
    micro_batch_sizes: tuple[int, ...]

    def layout(self, states: States, recompute: Recompute) -> ParallelLayout:
        """Return one of the group's layouts."""
        return ParallelLayout(
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            virtual_pipeline_model_parallel_size=self.virtual,
            data_parallel_size=self.data,
            sequence_parallel=self.sequence_parallel,
            recompute=recompute,
            **states._asdict(),
        )


class Tally:
    """Counts the layouts considered, and those refused by each rule."""

    def __init__(self) -> None:
        self.considered = 0
        self._refused: dict[str, tuple[int, str]] = {}

    def refuse(self, *, problem: str, count: int, label: str) -> None:
        """Count layouts that `problem`, as `budget.layout.rules` words it, rules out.

        Args:
            problem: the message of the broken rule.
            count: number of layouts that it rules out.
            label: one of these layouts, in one line.
        """
        self.refuse_by(rule=_rule(problem), count=count, example=lambda: f"{label}: {problem.split(';')[0]}")

    def refuse_by(self, *, rule: str, count: int, example: Callable[[], str]) -> None:
        """Count layouts that a named rule refuses; the first example is kept.

        Args:
            rule: the rule, without values.
            count: number of layouts that it rules out.
            example: returns one of these layouts with its values.
        """
        before, first = self._refused.get(rule) or (0, example())
        self._refused[rule] = before + count, first

    def rejections(self) -> tuple[Rejection, ...]:
        """Return the rules, most layouts first."""
        grouped = (Rejection(reason=rule, count=n, example=example) for rule, (n, example) in self._refused.items())
        return tuple(sorted(grouped, key=lambda rejection: -rejection.count))


@functools.lru_cache(maxsize=4096)
def _rule(problem: str) -> str:
    """Return a problem's text without its values: the part before the reason and the advice."""
    text = re.split(r"; |: ", re.sub(r" \([^)]*\)", "", problem))[0]
    return re.sub(r"\b(layout|shape|batch)\.|,? which is .*| = \d+$", "", text).strip()


def label(layout: ParallelLayout, *, micro_batch_size: int | None = None) -> str:
    """Return a layout in one line: TP 8 x PP 4 x DP 32, ZeRO-1, micro-batch 1."""
    sizes = f"TP {layout.tensor_model_parallel_size} x PP {layout.pipeline_model_parallel_size} x DP "
    parts = [f"{sizes}{layout.data_parallel_size}", f"ZeRO-{layout.zero_stage}"]
    if layout.virtual_pipeline_model_parallel_size > 1:
        parts.append(f"{layout.virtual_pipeline_model_parallel_size} chunks per stage")
    if layout.sequence_parallel:
        parts.append("sequence parallel")
    if layout.recompute is not Recompute.NONE:
        parts.append(f"recompute {layout.recompute}")
    for name in ("optimizer", "param"):
        if (place := getattr(layout, f"offload_{name}")) is not Offload.NONE:
            parts.append(f"{name} on {place}")
    if micro_batch_size is not None:
        parts.append(f"micro-batch {micro_batch_size}")
    return ", ".join(parts)


def groups(request: LayoutRequest, tally: Tally, /) -> Iterator[LayoutGroup]:
    """Yield every legal group; what is refused is counted in `tally`."""
    fixed, world = request.fixed, request.world_size
    recomputes = _choices(fixed, "recompute", tuple(Recompute))
    states = [
        States(stage, optimizer, param)
        for stage in _choices(fixed, "zero_stage", ZERO_STAGES)
        for optimizer in _choices(fixed, "offload_optimizer", request.allow_offload)
        for param in _choices(fixed, "offload_param", request.allow_offload)
    ]
    for tensor in _choices(fixed, "tensor_model_parallel_size", divisors(world)):
        for pipeline in _choices(fixed, "pipeline_model_parallel_size", divisors(max(1, world // tensor))):
            if problem := next(world_size_problems(world_size=world, tensor=tensor, pipeline=pipeline), None):
                count = len(states) * len(recomputes)
                tally.considered += count
                tally.refuse(problem=problem, count=count, label=f"TP {tensor} x PP {pipeline}")
                continue
            data = world // (tensor * pipeline)
            if fixed.get("data_parallel_size", data) != data:
                problem = f"data_parallel_size is {data} where {fixed['data_parallel_size']} is asked for"
                tally.considered += 1
                tally.refuse(problem=problem, count=1, label=f"TP {tensor} x PP {pipeline}")
                continue
            for virtual in _choices(fixed, "virtual_pipeline_model_parallel_size", _chunks(request, pipeline)):
                parallel = (False, True) if tensor > 1 else (False,)
                for sequence_parallel in _choices(fixed, "sequence_parallel", parallel):
                    axes = LayoutGroup(
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual=virtual,
                        data=data,
                        sequence_parallel=sequence_parallel,
                        states=tuple(states),
                        recomputes=recomputes,
                        micro_batch_sizes=_micro_batch_sizes(request, data),
                    )
                    if legal := _legal(axes, request, tally):
                        yield legal


def _legal(group: LayoutGroup, request: LayoutRequest, tally: Tally) -> LayoutGroup | None:
    """Return the legal part of a group, or None."""
    states, recomputes, sizes = group.states, group.recomputes, group.micro_batch_sizes
    tally.considered += len(states) * len(recomputes) * len(sizes)
    plain = group.layout(States(0, Offload.NONE, Offload.NONE), Recompute.NONE)
    name = label(plain).replace(", ZeRO-0", "")
    if problem := next(shape_problems(shape=request.shape, layout=plain), None):
        tally.refuse(problem=problem, count=len(states) * len(recomputes) * len(sizes), label=name)
        return None
    legal_sizes = []
    for size in sizes:
        batch = make_batch(request, data=group.data, micro_batch_size=size)
        if problem := next(batch_problems(batch=batch, layout=plain), None):
            tally.refuse(problem=problem, count=len(states) * len(recomputes), label=f"{name}, micro-batch {size}")
        else:
            legal_sizes.append(size)
    legal_states = []
    for state in states if legal_sizes else ():
        layout = group.layout(state, Recompute.NONE)
        problems = layout_problems(layout=layout, precision=request.precision, optimizer=request.optimizer)
        if problem := next(problems, None):
            tally.refuse(problem=problem, count=len(recomputes) * len(legal_sizes), label=label(layout))
        else:
            legal_states.append(state)
    if not legal_states:
        return None
    return LayoutGroup(
        tensor=group.tensor,
        pipeline=group.pipeline,
        virtual=group.virtual,
        data=group.data,
        sequence_parallel=group.sequence_parallel,
        states=tuple(legal_states),
        recomputes=recomputes,
        micro_batch_sizes=tuple(legal_sizes),
    )


def make_batch(request: LayoutRequest, *, data: int, micro_batch_size: int) -> BatchPlan:
    """Return the batch, shared by `data` data-parallel ranks.

    Args:
        request: gives the global batch, in sequences, and the number of steps.
        data: data-parallel size.
        micro_batch_size: sequences in one forward pass of one data-parallel rank.
    """
    return BatchPlan(
        global_batch_size=request.global_batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=max(1, request.global_batch_size // data // micro_batch_size),
        train_iters=request.train_iters,
    )


def _choices(fixed: Mapping[str, Any], name: str, free: Sequence[Any]) -> tuple[Any, ...]:
    return (fixed[name],) if name in fixed else tuple(free)


def _chunks(request: LayoutRequest, pipeline: int) -> tuple[int, ...]:
    """Return the chunks per stage: all that divide the layers of a full one."""
    layers = request.shape.num_layers
    return divisors(-(-layers // pipeline)) if 1 < pipeline <= layers else (1,)


def _micro_batch_sizes(request: LayoutRequest, data: int) -> tuple[int, ...]:
    """Return the micro-batch sizes: all that divide a rank's share; 1 where ranks cannot share the batch at all."""
    share = request.global_batch_size // data
    shared = share > 0 and request.global_batch_size % data == 0
    return _choices(request.fixed, "micro_batch_size", divisors(share) if shared else (1,))


def divisors(count: int, /) -> tuple[int, ...]:
    """Return every divisor, smallest first."""
    low = [n for n in range(1, int(count**0.5) + 1) if count % n == 0]
    return tuple(dict.fromkeys((*low, *(count // n for n in reversed(low)))))
