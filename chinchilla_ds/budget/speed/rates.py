"""A device in its cluster for the step-time model: sustained rates, and collectives on the topology.

Collectives are rings. Ranks are in megatron-core's order, tp-cp-ep-dp-pp, so a group is given by its size and stride:
tensor-parallel groups have stride 1, data-parallel ones TP, pipelines TP x DP.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from chinchilla_ds.budget.speed.devices import Device
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import Precision

RUN_EFFICIENCY = 0.97
"""Share of their isolated rate that kernels reach in a run: gaps between kernels, clocks under a power limit,
stragglers.

Ours: fitted to every second published run of docs/step-time.md.
"""
ATTENTION_HALF_LENGTH = 512
"""Tokens of a sequence at which fused causal attention has half its rate at long ones: blocks on the diagonal are
computed whole, and short rows of blocks leave the pipeline of a kernel partly empty.

Source: FlashAttention-2 (Dao 2023, arXiv:2307.08691), figure 4: 160 TFLOP/s at 2k, 190 at 16k.
"""
ATTENTION_SOFTMAX_WIDTH = 16
"""Channels of a head whose matmuls take as long as the softmax of its scores, which does not grow with the head.

Source: the same figure: heads of 64 have 0.9 of the rate of heads of 128.
"""
ATTENTION_HEAD_SIZE = 128
"""Channels per head to which a device's `attention_efficiency` refers."""
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


class Elementwise(NamedTuple):
    """What kernels other than matmuls and attention read and write in a forward pass, in elements per token.

    The defaults are those of our decoder, whose rotary positions, changes of layout and SwiGLU are not fused. A GPT has
    no rotary positions, and a GELU of 4 h moves less than a SwiGLU of 8/3 h.
    """

    norms: float = 10
    """Times the hidden size: two norms and two residual additions."""
    qkv: float = 8
    """Times the channels of queries, keys and values: rotary positions and changes of layout."""
    ffn: float = 5
    """Times the intermediate size: SwiGLU."""


OUR_KERNELS = Elementwise()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device with all rates that the estimate needs, as reached by kernels and collectives in a run."""

    devices_per_node: int
    peak_flops_per_s: float
    """Peak of the data sheet, the reference of MFU."""
    matmul_flops_per_s: float
    """Rate of large matmuls."""
    attention_flops_per_s: float
    """Rate of attention over long sequences, with heads of 128."""
    memory_bytes_per_s: float
    """Memory bandwidth of elementwise kernels."""
    node_bytes_per_s: float
    """Bandwidth of a collective inside a node, per device and direction."""
    network_bytes_per_s: float
    """The same between nodes, for one device's network card."""
    host_bytes_per_s: float
    elementwise: Elementwise = OUR_KERNELS

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

    def attention_s(self, *, tokens: float, channels: float, seq_length: int, head_size: int) -> float:
        """Return the time of the causal half of attention, forward.

        Args:
            tokens: tokens of the micro-batch.
            channels: channels of all heads of this rank.
            seq_length: tokens of a sequence.
            head_size: channels per head.
        """
        flops = 4 * tokens * (seq_length + 1) / 2 * channels
        return flops / (self.attention_flops_per_s * _attention_share(seq_length, head_size))

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


def _attention_share(seq_length: int, head_size: int) -> float:
    """Return the share of attention's rate at long sequences and heads of 128: matmuls over matmuls and softmax."""
    width = (1 + ATTENTION_SOFTMAX_WIDTH / ATTENTION_HEAD_SIZE) / (1 + ATTENTION_SOFTMAX_WIDTH / head_size)
    return width * seq_length / (seq_length + ATTENTION_HALF_LENGTH)


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
