"""This rank's share of the FP32 weights and the optimizer's states, for every ZeRO stage of DeepSpeed 0.19.8.

| engine | FP32 weights | cut |
|---|---|---|
| ZeRO-0, FP32 | the parameters themselves | none: every data-parallel rank has all |
| ZeRO-0, BF16 and FP16 (FP16_UnfusedOptimizer) | `fp32_groups`, one tensor per parameter | none |
| ZeRO-1 and 2 | `single_partition_of_fp32_groups` | one flat part per group, mapped by `_hp_mapping` |
| ZeRO-1, BF16 (BF16_Optimizer) | `fp32_groups_flat_partition` | the same |
| ZeRO-3 | `fp32_partitioned_groups_flat` | an equal part of every parameter, the last one padded |

ZeRO-3's states may be on NVMe; `resident` brings them to the host, one sub-group at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from chinchilla_ds.checkpoint.boxes import Cut, boxes_of, cut_of
from chinchilla_ds.checkpoint.index import WEIGHT
from chinchilla_ds.checkpoint.tensors import Block
from chinchilla_ds.engine.optimizer import fresh_state
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.model.initialization import full_shape, global_named_parameters, split_of
from chinchilla_ds.optimizers import OptimizerSpec, optimizer_of
from chinchilla_ds.run_plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive values of one parameter within a flat tensor."""

    name: str
    """Global name of the parameter."""
    cut: Cut
    flat_start: int
    """Offset of the values within the flat tensor."""
    start: int
    """Offset of the values within the flattened tensor-parallel part of the parameter."""
    numel: int
    is_first_copy: bool
    """Whether no lower tensor-parallel rank holds the same values."""


@dataclass(frozen=True, kw_only=True)
class OwnedState:
    """A flat FP32 weight tensor with its optimizer states, and the pieces of parameters in it."""

    weight: Tensor
    """[n]; on NVMe it is empty outside of `resident`."""
    optimizer: torch.optim.Optimizer
    spec: OptimizerSpec
    """Spec of the optimizer."""
    key: Tensor
    """The tensor under which the optimizer keeps its states."""
    pieces: tuple[Piece, ...]
    resident: Callable[[], AbstractContextManager[Any]] = nullcontext
    swapped: bool = False
    """Whether it is on NVMe."""

    def tensors(self) -> dict[str, Tensor]:
        """Return weight and states, flat; states that the optimizer has not created yet are created as zeros."""
        state = self.optimizer.state[self.key]
        if not state:
            state.update(fresh_state(self.optimizer, self.key, spec=self.spec))
        return {WEIGHT: self.weight.detach().view(-1), **{kind: state[kind].view(-1) for kind in self.spec.states}}

    @property
    def step(self) -> int:
        """The optimizer's count of steps; 0 if it does not count."""
        return int(self.optimizer.state[self.key].get("step", 0)) if self.key in self.optimizer.state else 0

    def set_step(self, step: int) -> None:
        """Set the optimizer's count of steps, if it counts."""
        state = self.optimizer.state[self.key]
        if "step" in state:
            state["step"] = torch.full_like(state["step"], step) if isinstance(state["step"], Tensor) else step


def catch_up(optimizer: torch.optim.Optimizer, *, step: int) -> None:
    """Let DeepSpeed's CPU kernel count to `step` as in the saved run; other optimizers need nothing.

    The kernel keeps the powers of AdamW's betas, and multiplies them step by step; when the count jumps it recomputes
    them (IncrementStep in DeepSpeed 0.19.8's cpu_adam.h). In FP32 the two differ in the last bits, and so would a
    resumed run from an uninterrupted one.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if not isinstance(optimizer, DeepSpeedCPUAdam):
        return
    group, nothing = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
    beta1, beta2 = group["betas"]
    for count in range(1, step + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, count, 0.0, beta1, beta2, group["eps"], 0.0, group["bias_correction"], *nothing
        )


def owned_states(engine: Any, stage: PipelineStage, *, plan: RunPlan) -> list[OwnedState]:
    """Return this rank's states; together all ranks' pieces hold every value of the model.

    Args:
        engine: DeepSpeed's engine.
        stage: The module that it trains.
        plan: Gives the ZeRO stage and the optimizer.
    """
    names = {id(parameter): name for name, parameter in global_named_parameters(stage)}
    wrapper, spec = engine.optimizer, optimizer_of(plan.optimizer)
    if plan.layout.zero_stage == 3:
        return [_zero3_state(wrapper, index, names, spec) for index in range(len(wrapper.fp16_groups))]
    if plan.layout.zero_stage in (1, 2):
        return [_flat_state(wrapper, flat, group, names, spec) for flat, group in _flat_groups(wrapper)]
    return [
        _whole_state(wrapper, master, parameter, names[id(parameter)], spec)
        for master, parameter in _whole_pairs(wrapper)
    ]


def _piece(name: str, parameter: nn.Parameter, *, flat_start: int, start: int, numel: int) -> Piece:
    split, rank = split_of(name, parameter), parallel_state.get_tensor_model_parallel_rank()
    cut = cut_of(
        full_shape=full_shape(parameter),
        split=split,
        rank=rank,
        world_size=parallel_state.get_tensor_model_parallel_world_size(),
    )
    first = split is not None or rank == 0
    return Piece(name=name, cut=cut, flat_start=flat_start, start=start, numel=numel, is_first_copy=first)


def _whole_pairs(wrapper: Any) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """Yield ZeRO-0's FP32 weights and their parameters."""
    if hasattr(wrapper, "fp32_groups"):
        for masters, parameters in zip(wrapper.fp32_groups, wrapper.fp16_groups, strict=True):
            yield from zip(masters, parameters, strict=True)
        return
    for group in wrapper.param_groups:
        for parameter in group["params"]:
            yield parameter, parameter


def _whole_state(wrapper: Any, master: Tensor, parameter: nn.Parameter, name: str, spec: OptimizerSpec) -> OwnedState:
    optimizer = getattr(wrapper, "optimizer", wrapper)
    piece = _piece(name, parameter, flat_start=0, start=0, numel=parameter.numel())
    return OwnedState(weight=master, optimizer=optimizer, spec=spec, key=master, pieces=(piece,))


def _flat_groups(wrapper: Any) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
    if hasattr(wrapper, "fp32_groups_flat_partition"):  # BF16_Optimizer
        return zip(wrapper.fp32_groups_flat_partition, wrapper.bf16_groups, strict=True)
    return zip(wrapper.single_partition_of_fp32_groups, wrapper.bit16_groups, strict=True)


def _flat_state(
    wrapper: Any, flat: Tensor, group: list[nn.Parameter], names: dict[int, str], spec: OptimizerSpec
) -> OwnedState:
    pieces = []
    for parameter in group:
        fragment: Any = vars(parameter)["_hp_mapping"]
        if fragment is not None:  # None: it is entirely on other ranks
            pieces.append(
                _piece(
                    names[id(parameter)],
                    parameter,
                    flat_start=fragment.hp_fragment_address.start,
                    start=fragment.lp_fragment_address.start,
                    numel=fragment.lp_fragment_address.numel,
                )
            )
    return OwnedState(weight=flat, optimizer=wrapper.optimizer, spec=spec, key=flat, pieces=tuple(pieces))


def _zero3_state(wrapper: Any, index: int, names: dict[int, str], spec: OptimizerSpec) -> OwnedState:
    flat, swapped = wrapper.fp32_partitioned_groups_flat[index], wrapper._swappable_optimizer_subgroup(index)
    rank, pieces, flat_start = parallel_state.get_data_parallel_rank(), [], 0
    for parameter in wrapper.fp16_groups[index]:
        part = parameter.partition_numel()
        start = rank * part
        numel = min(
            part, parameter.ds_numel - start
        )  # the last part is padded; where there are few values, so are more
        if numel > 0:
            pieces.append(_piece(names[id(parameter)], parameter, flat_start=flat_start, start=start, numel=numel))
        flat_start += part
    return OwnedState(
        weight=flat,
        optimizer=wrapper.optimizer,
        spec=spec,
        key=flat,
        pieces=tuple(pieces),
        resident=(lambda: _swapped_in(wrapper, index)) if swapped else nullcontext,
        swapped=swapped,
    )


@contextmanager
def _swapped_in(wrapper: Any, index: int) -> Iterator[None]:
    """Hold a sub-group's states on the host; changes are written back to NVMe."""
    wrapper._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
    finally:
        wrapper._optimizer_states_and_gradient_swap_out(index)


def blocks_of(state: OwnedState, *, tensors: dict[str, Tensor], copies: bool) -> Iterator[Block]:
    """Yield the boxes of a state's pieces, of every kind in `tensors` and over their memory.

    Args:
        state: Its pieces are cut into boxes.
        tensors: Flat tensors by kind, laid out as the state's own.
        copies: Whether to include pieces that another tensor-parallel rank also holds: to read, not to write.
    """
    for piece in state.pieces:
        if not (piece.is_first_copy or copies):
            continue
        for box in boxes_of(piece.cut, start=piece.start, numel=piece.numel):
            for kind, flat in tensors.items():
                values = flat.narrow(0, piece.flat_start + box.start, box.numel).view(box.sizes)
                yield Block(
                    key=f"{kind}/{piece.name}", full_shape=piece.cut.full_shape, offsets=box.offsets, values=values
                )


@torch.no_grad()
def publish(engine: Any, *, zero_stage: int) -> None:
    """Copy the loaded FP32 weights into the model's compute weights, on every rank."""
    wrapper = engine.optimizer
    if zero_stage == 3:
        for index in range(len(wrapper.fp16_groups)):
            with _swapped_in(wrapper, index) if wrapper._swappable_optimizer_subgroup(index) else nullcontext():
                wrapper._reassign_or_swap_out_partitioned_parameters(index)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
    elif zero_stage in (1, 2):
        wrapper.update_lp_params()
    else:
        for master, parameter in _whole_pairs(wrapper):
            if master is not parameter:
                parameter.copy_(master)
