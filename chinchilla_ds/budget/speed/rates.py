"""A device in its cluster for the step-time model: sustained rates, and collectives on the topology.

Collectives are rings. Ranks are in megatron-core's order, tp-cp-ep-dp-pp, so a group is given by its size and stride:
tensor-parallel groups have stride 1, data-parallel ones TP, pipelines TP x DP.
"""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.speed.devices import Device
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import Precision

RUN_EFFICIENCY = 0.88
"""Share of their isolated rate that kernels reach in a run: gaps between kernels, clocks under a power limit,
stragglers.

Ours: fitted by eye to the published runs of docs/step-time.md, the only fitted constant.
"""
LINK_EFFICIENCY = 0.8
"""Share of a link that large collectives reach.

Source: nccl-tests' bus bandwidth on 8 GPUs of a node, about 235 of 300 GB/s (A100) and 360 of 450 GB/s (H100).
"""
MEMORY_EFFICIENCY = 0.8
"""Share of the memory bandwidth that elementwise kernels reach. Ours: slightly less than STREAM's nine tenths."""
COLLECTIVE_LATENCY_S = 10e-6
"""Latency of one collective inside a node, seconds. Source: Calculon (Isaev et al. 2023), systems/a100_80g.json."""
HOP_LATENCY_S = 5e-6
"""Latency that each further node of a ring adds, seconds. Ours: half of a message between two nodes."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device with all rates that the estimate needs, as reached by kernels and collectives in a run."""

    devices_per_node: int
    peak_flops_per_s: float
    """Peak of the data sheet, the reference of MFU."""
    matmul_flops_per_s: float
    """Rate of large matmuls."""
    attention_flops_per_s: float
    memory_bytes_per_s: float
    """Memory bandwidth of elementwise kernels."""
    node_bytes_per_s: float
    """Bandwidth of a collective inside a node, per device and direction."""
    network_bytes_per_s: float
    """The same between nodes, for one device's network card."""
    host_bytes_per_s: float

    def matmul_s(self, *, m: float, k: float, n: float, width: int) -> float:
        """Return the time of [m, k] x [k, n]: its FLOPs at the rate of large matmuls, then its operands through memory.

        The sum of the two, rather than the larger, makes efficiency fall smoothly for small matrices: on H100 0.72 of
        the peak for 8192 cubed, 0.66 for 4096, 0.56 for 2048, before RUN_EFFICIENCY.

        Args:
            m: rows of the first operand.
            k: columns of the first operand, rows of the second.
            n: columns of the second operand.
            width: bytes per element.
        """
        operands = width * (m * k + k * n + m * n)
        return 2 * m * k * n / self.matmul_flops_per_s + operands / self.memory_bytes_per_s

    def all_gather_s(self, total_bytes: float, /, *, size: int, stride: int, messages: float = 1) -> float:
        """Return the time of a ring all-gather, or reduce-scatter: (size - 1) / size of the bytes pass each link.

        Args:
            total_bytes: Bytes of the gathered tensors.
            size: Ranks of the group.
            stride: Distance from one rank of the group to the next.
            messages: Number of collectives they are cut into.
        """
        if size == 1:
            return 0.0
        rate, latency = self._group_link(size, stride)
        return (size - 1) / size * total_bytes / rate + messages * latency

    def all_reduce_s(self, total_bytes: float, /, *, size: int, stride: int, messages: float = 1) -> float:
        """Return the time of a ring all-reduce, which is a reduce-scatter and an all-gather.

        Args:
            total_bytes: bytes of the reduced tensors, on each rank.
            size: ranks of the group.
            stride: distance from one rank of the group to the next.
            messages: number of collectives they are cut into.
        """
        return 2 * self.all_gather_s(total_bytes, size=size, stride=stride, messages=messages)

    def send_s(self, message_bytes: float, /, *, size: int, stride: int) -> float:
        """Return the time of one message to the next of `size` stages, `stride` ranks away, over the slowest link.

        Args:
            message_bytes: bytes of the message.
            size: number of stages.
            stride: ranks from one stage to the next.
        """
        inside = self.devices_per_node % (size * stride) == 0
        rate = self.node_bytes_per_s if inside else self.network_bytes_per_s
        return message_bytes / rate + COLLECTIVE_LATENCY_S

    def _group_link(self, size: int, stride: int) -> tuple[float, float]:
        """Return bytes per second and device, and the latency, of a collective over `size` ranks `stride` apart.

        A ring that leaves the node does so through the network cards of all its members in the node.
        """
        if self.devices_per_node % (size * stride) == 0:
            return self.node_bytes_per_s, COLLECTIVE_LATENCY_S
        members = max(1, math.gcd(self.devices_per_node, size * stride) // stride)
        rate = min(self.node_bytes_per_s, members * self.network_bytes_per_s)
        return rate, COLLECTIVE_LATENCY_S + HOP_LATENCY_S * (math.ceil(size / members) - 1)


def make_machine(
    *, device: Device, precision: Precision, world_size: int, devices_per_node: int | None = None
) -> Machine:
    """Return the machine.

    Args:
        device: The accelerator.
        precision: Precision of matmuls; FP32 does not use TF32, as in torch by default.
        world_size: All devices.
        devices_per_node: Devices that the fast link joins; None: the device's own number. As many of them are used as
            make all nodes equal: of a rack of 72, 64 for 1024 devices.

    Raises:
        ConfigError: every required rate that is unknown.
    """
    most = devices_per_node or device.devices_per_node
    per_node = next(count for count in range(min(most, world_size), 0, -1) if world_size % count == 0)
    peak = device.peak_flops_per_s(precision=precision)
    memory, host = device.memory_bytes_per_s, device.host_bytes_per_s
    node = device.intra_node_bytes_per_s if per_node > 1 else math.inf
    network = device.inter_node_bytes_per_s if per_node < world_size else math.inf
    if peak is None or memory is None or host is None or node is None or network is None:
        needed = {f"{precision}_flops_per_s": peak, "memory_bytes_per_s": memory, "host_bytes_per_s": host}
        needed |= {"intra_node_bytes_per_s": node, "inter_node_bytes_per_s": network}
        missing = ", ".join(name for name, rate in needed.items() if rate is None)
        raise ConfigError(
            f"device {device.name} has no {missing}: a step's time cannot be estimated; give it in a `hardware` file"
        )
    return Machine(
        devices_per_node=per_node,
        peak_flops_per_s=peak,
        matmul_flops_per_s=peak * device.matmul_efficiency * RUN_EFFICIENCY,
        attention_flops_per_s=peak * device.attention_efficiency * RUN_EFFICIENCY,
        memory_bytes_per_s=memory * MEMORY_EFFICIENCY * RUN_EFFICIENCY,
        node_bytes_per_s=node * LINK_EFFICIENCY,
        network_bytes_per_s=network * LINK_EFFICIENCY,
        host_bytes_per_s=host * LINK_EFFICIENCY,
    )
