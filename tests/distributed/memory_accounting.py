"""Count the bytes of a live engine's tensors, on every rank, while it takes real training steps.

Every component is a sum over distinct storages, so views and tied weights count once. Saved activations are watched by
`torch.autograd.graph.saved_tensors_hooks`: packing adds a storage, and dropping the packed object, as the backward pass
does when it has used it, takes it away. A TorchDispatchMode watches everything else that any operation makes, so that
nothing is left out: what has no other role is a buffer. The step's peak is the sample with the largest sum.
"""

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chinchilla_ds.run_plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes of one rank at one moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Saved by autograd."""
    logits: int
    """All tensors of that size, saved or not."""
    buffers: int
    """Everything else."""
    host: int
    """What the layout offloads, which on the CPU is the same memory: told apart by its role."""

    @property
    def total(self) -> int:
        """All that lies on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank sends home."""

    stage: int
    peak: Measured
    """At the fullest moment of a train step."""
    step: Measured
    """When the inner optimizer steps."""
    allocated: int | None
    """Peak of torch's CPU allocator over the step, host and device together, with all working memory; None unless
    `watch_allocator` ran before the engine was built."""


class _Packed:
    """A saved tensor; when autograd drops it, its bytes are no longer counted."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Return the distinct storages behind `tensors`: address to bytes."""
    found = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


class SavedTensors:
    """Storages that autograd holds for the backward pass, weights apart."""

    def __init__(self, *, weights: Callable[[], set[int]]) -> None:
        self.weights = weights
        self.count: dict[int, int] = {}
        self.size: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Any:
        storage, packed = tensor.untyped_storage(), _Packed(tensor)
        pointer = storage.data_ptr()
        if pointer in self.weights():
            return packed
        self.count[pointer] = self.count.get(pointer, 0) + 1
        self.size[pointer] = storage.nbytes()
        weakref.finalize(packed, self._drop, pointer)
        return packed

    def unpack(self, packed: Any) -> Tensor:
        return packed.tensor  # type: ignore[no-any-return]

    def _drop(self, pointer: int) -> None:
        self.count[pointer] -= 1
        if not self.count[pointer]:
            del self.count[pointer], self.size[pointer]


class LiveTensors(TorchDispatchMode):
    """Storages of all tensors that operations have made, those of the backward pass too, until they are freed."""

    def __init__(self, *, on_new: Callable[[], None]) -> None:
        super().__init__()
        self.on_new = on_new
        self.size: dict[int, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer and pointer not in self.size:
            self.size[pointer], self.shapes[pointer] = size, tuple(tensor.shape)
            self.total += size
            weakref.finalize(storage, self._drop, pointer)
            self.on_new()

    def _drop(self, pointer: int) -> None:
        self.total -= self.size.pop(pointer)


class EngineTensors:
    """The tensors that a TrainingEngine holds, by role."""

    def __init__(self, engine: Any) -> None:
        self.plan: RunPlan = engine.plan
        self.optimizer = engine.engine.optimizer
        self.inner = getattr(self.optimizer, "optimizer", self.optimizer)
        self.parameters = list(engine.stage.parameters())

    def partitions(self) -> Iterator[Tensor]:
        """Yield ZeRO-3's partitions of the weights."""
        if self.plan.layout.zero_stage == 3:
            yield from (parameter.ds_tensor for parameter in self.parameters)

    def weights(self) -> Iterator[Tensor]:
        """Yield whole weights that stay on the device; under ZeRO-3 the small ones."""
        zero3 = self.plan.layout.zero_stage == 3
        yield from (parameter.data for parameter in self.parameters if not zero3 or parameter.ds_persist)

    def gathered(self) -> Iterator[Tensor]:
        """Yield ZeRO-3's whole parameters, while they are."""
        if self.plan.layout.zero_stage == 3:
            yield from (parameter.data for parameter in self.parameters if not parameter.ds_persist)

    def masters(self) -> list[Tensor]:
        """Return the FP32 weights that the inner optimizer updates; ZeRO-3 hands them to it for the step alone."""
        partitions: list[Tensor] | None = getattr(self.optimizer, "fp32_partitioned_groups_flat", None)
        return partitions or [tensor for group in self.inner.param_groups for tensor in group["params"]]

    def optimizer_states(self) -> Iterator[Tensor]:
        """Yield FP32 masters and Adam's moments."""
        yield from self.masters()
        for state in self.inner.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim())

    def gradients(self) -> Iterator[Tensor | None]:
        """Yield gradients in compute precision: whole ones, and ZeRO's averaged partitions."""
        yield from (parameter.grad for parameter in self.parameters)
        for name in ("averaged_gradients", "all_grad_tensors"):
            for tensors in getattr(self.optimizer, name, {}).values():
                yield from tensors or ()
        yield getattr(self.optimizer, "grad_partitions_flat_buffer", None)

    def step_gradients(self) -> Iterator[Tensor | None]:
        """Yield the FP32 gradients that the inner optimizer reads."""
        yield from (tensor.grad for tensor in self.masters())

    def buckets(self) -> Iterator[Tensor]:
        """Yield communication buffers of DeepSpeed and megatron-core."""
        from megatron.core.parallel_state import get_global_memory_buffer

        for bucket in getattr(self.optimizer, "ipg_buckets", {}).values():
            yield from bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
        yield from get_global_memory_buffer().buffer.values()
        if self.plan.layout.zero_stage in (1, 2) and self.plan.layout.offload_optimizer != "none":
            yield self.optimizer.temp_grad_buffer_for_gpu_offload

    def host_buffers(self) -> Iterator[Tensor]:
        """Yield what ZeRO-1 and 2 keep in CPU memory beside offloaded states."""
        if self.plan.layout.zero_stage in (1, 2) and self.plan.layout.offload_optimizer != "none":
            yield self.optimizer.temp_grad_buffer_for_cpu_offload
            yield from self.optimizer.param_buffer_of_bit16_for_cpu_offload_groups
            yield from self.optimizer.accumulated_grads_in_cpu.values()


class Accountant:
    """Samples an engine's bytes while it trains, whenever all tensors together are nearly as large as ever before."""

    NEARLY = 0.97

    def __init__(self, engine: Any) -> None:
        self.engine, self.tensors = engine, EngineTensors(engine)
        self.saved = SavedTensors(weights=self._weights)
        self.live = LiveTensors(on_new=self._sample_if_large)
        shape, tensor = engine.plan.shape, engine.plan.layout.tensor_model_parallel_size
        self.vocabulary = shape.padded_vocab_size // tensor
        self.logits_elements = engine.plan.batch.micro_batch_size * shape.seq_length * self.vocabulary
        self.largest = 0
        self.peak: Measured | None = None
        self.step: Measured | None = None
        self.tensors.inner.register_step_pre_hook(self._sample_step)
        self._watch_checkpoints()

    def _weights(self) -> set[int]:
        tensors = self.tensors
        return set(storages([*tensors.partitions(), *tensors.weights(), *tensors.gathered()]))

    def _sample_if_large(self) -> None:
        if self.live.total >= self.NEARLY * self.largest:
            self.largest = max(self.largest, self.live.total)
            self.peak = _fuller(self.peak, self.now())

    def _sample_step(self, *_: Any) -> None:
        self.step = _fuller(self.step, self.now())

    def now(self) -> Measured:
        """Return this moment's bytes; a storage counts in the first role that names it."""
        layout, tensors = self.engine.plan.layout, self.tensors
        roles: dict[str, dict[int, int]] = {
            "partitions": storages(tensors.partitions()),
            "weights": storages(tensors.weights()),
            "optimizer": storages(tensors.optimizer_states()),
            "buffers": storages([*tensors.buckets(), *tensors.gathered()]),
            "gradients": storages(tensors.gradients()),
            "step": storages(tensors.step_gradients()),
            "host": storages(tensors.host_buffers()),
            "logits": {p: size for p, size in self.live.size.items() if self._is_logits(self.live.shapes[p])},
            "activations": self.saved.size,
            "working": self.live.size,
        }
        counted: set[int] = set()
        size: dict[str, int] = {}
        for role, of_role in roles.items():
            size[role] = sum(bytes_ for pointer, bytes_ in of_role.items() if pointer not in counted)
            counted |= of_role.keys()
        host = {"host"} | ({"optimizer", "step"} if layout.offload_optimizer != "none" else set())
        if layout.offload_optimizer != "none" and layout.zero_stage == 3:
            host.add("gradients")  # its partition of them lies where the optimizer does (stage3.py, self.device)
        if layout.offload_param != "none":
            host.add("partitions")
        device = {role: 0 if role in host else bytes_ for role, bytes_ in size.items()}
        return Measured(
            weights=device["partitions"] + device["weights"],
            gradients=device["gradients"],
            optimizer=device["optimizer"],
            activations=size["activations"],
            logits=size["logits"],
            buffers=device["buffers"] + device["step"] + size["working"],
            host=sum(size[role] for role in host),
        )

    def _is_logits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and shape[-1] == self.vocabulary and math.prod(shape) == self.logits_elements

    def _watch_checkpoints(self) -> None:
        """Count what deepspeed.checkpointing keeps on its context, which saved_tensors_hooks do not see."""
        from deepspeed.runtime.activation_checkpointing import checkpointing

        function = checkpointing.CheckpointFunction
        forward, backward = function.forward, function.backward

        def watched_forward(ctx: Any, *args: Any) -> Any:
            outputs = forward(ctx, *args)
            ctx.counted = [self.saved.pack(t) for t in ctx.deepspeed_saved_tensors if isinstance(t, Tensor)]
            return outputs

        def watched_backward(ctx: Any, *grads: Any) -> Any:
            result = backward(ctx, *grads)
            ctx.counted = None
            return result

        function.forward, function.backward = staticmethod(watched_forward), staticmethod(watched_backward)

    def train_step(self, batches: Any) -> None:
        """Take one step, watched from a clean sheet."""
        self.peak = self.step = None
        with torch.autograd.graph.saved_tensors_hooks(self.saved.pack, self.saved.unpack), self.live:
            self.engine.train_step(batches, learning_rate=1e-3)


def _fuller(before: Measured | None, now: Measured) -> Measured:
    return now if before is None or now.total > before.total else before


def measure(engine: Any, *, steps: int = 3) -> RankMemory:
    """Return what this rank held in the last of `steps` steps; a body for `tests.parity.harness.on_engine`."""
    from megatron.core import parallel_state

    from tests.parity.harness import own_micro_batches

    accountant = Accountant(engine)
    for step in range(steps):
        started_ns = time.time_ns()
        accountant.train_step(own_micro_batches(engine.plan, step))
    peak, step = accountant.peak, accountant.step
    assert peak is not None
    assert step is not None
    return RankMemory(
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        peak=peak,
        step=step,
        allocated=_allocated_peak(since_ns=started_ns),
    )


_profiler: Any = None


def watch_allocator() -> None:
    """Record what torch's CPU allocator hands out from now on; a `prepare` for `tests.parity.harness.on_engine`."""
    global _profiler
    _profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    _profiler.__enter__()


def _allocated_peak(*, since_ns: int) -> int | None:
    if _profiler is None:
        return None
    _profiler.__exit__(None, None, None)
    changes = sorted(_allocations(_profiler.profiler.kineto_results.experimental_event_tree()))
    live: dict[int, int] = {}
    total = peak = 0
    for at_ns, pointer, size in changes:
        # gloo's threads free tensors unseen: where an address is handed out again, what was there before is gone
        total += max(size, 0) - live.pop(pointer, 0)
        if size > 0:
            live[pointer] = size
        if at_ns >= since_ns:
            peak = max(peak, total)
    return peak


def _allocations(events: Any) -> Iterator[tuple[int, int, int]]:
    """Yield (time, address, bytes) of every allocation, and with negative bytes of every release."""
    for event in events:
        if event.tag.name == "Allocation":
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)
