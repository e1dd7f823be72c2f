"""Peak dense matmul rates by device name. An unknown device has none: MFU is then not reported, never guessed."""

import re
from dataclasses import dataclass

from chinchilla_ds.plan import Precision


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peak dense (not sparse) matmul rates of one accelerator."""

    name: str
    """How the device calls itself: part of torch.cuda.get_device_name(), as whole words and without case."""
    bf16_flops_per_s: float
    """BF16 and FP16 on tensor cores."""
    tf32_flops_per_s: float
    """FP32 inputs rounded to TF32 on tensor cores."""
    fp32_flops_per_s: float
    """Plain FP32."""
    source: str


DEVICES: tuple[Device, ...] = (
    # The more specific name stands first: the first one found in the device's name wins.
    Device(
        name="GB200",
        bf16_flops_per_s=2500e12,
        tf32_flops_per_s=1250e12,
        fp32_flops_per_s=80e12,
        source="NVIDIA GB200 NVL72 data sheet, per GPU: half of the sparse rates",
    ),
    Device(
        name="B200",
        bf16_flops_per_s=2250e12,
        tf32_flops_per_s=1125e12,
        fp32_flops_per_s=75e12,
        source="NVIDIA HGX B200 data sheet (18 PF dense BF16 for 8 GPUs)",
    ),
    Device(
        name="H200 NVL",
        bf16_flops_per_s=835.5e12,
        tf32_flops_per_s=417.5e12,
        fp32_flops_per_s=60e12,
        source="NVIDIA H200 NVL data sheet: half of the sparse rates",
    ),
    Device(
        name="GH200",
        bf16_flops_per_s=989.4e12,
        tf32_flops_per_s=494.7e12,
        fp32_flops_per_s=66.9e12,
        source="NVIDIA GH200 data sheet: half of the sparse rates",
    ),
    Device(
        name="H200",
        bf16_flops_per_s=989.4e12,
        tf32_flops_per_s=494.7e12,
        fp32_flops_per_s=66.9e12,
        source="NVIDIA H200 SXM data sheet: half of the sparse rates",
    ),
    Device(
        name="H100 NVL",
        bf16_flops_per_s=835.5e12,
        tf32_flops_per_s=417.5e12,
        fp32_flops_per_s=60e12,
        source="NVIDIA H100 NVL data sheet: half of the sparse rates",
    ),
    Device(
        name="H100 PCIe",
        bf16_flops_per_s=756e12,
        tf32_flops_per_s=378e12,
        fp32_flops_per_s=51.2e12,
        source="NVIDIA H100 PCIe data sheet: half of the sparse rates",
    ),
    Device(
        name="H100",
        bf16_flops_per_s=989.4e12,
        tf32_flops_per_s=494.7e12,
        fp32_flops_per_s=66.9e12,
        source="NVIDIA H100 SXM data sheet: half of the sparse rates",
    ),
    Device(
        name="A100",
        bf16_flops_per_s=312e12,
        tf32_flops_per_s=156e12,
        fp32_flops_per_s=19.5e12,
        source="NVIDIA A100 data sheet",
    ),
    Device(
        name="L40S",
        bf16_flops_per_s=362.05e12,
        tf32_flops_per_s=183e12,
        fp32_flops_per_s=91.6e12,
        source="NVIDIA L40S data sheet",
    ),
    Device(
        name="MI300X",
        bf16_flops_per_s=1307.4e12,
        tf32_flops_per_s=653.7e12,
        fp32_flops_per_s=163.4e12,
        source="AMD Instinct MI300X data sheet",
    ),
)


def find_device(device_name: str, /) -> Device | None:
    """Return the entry whose name occurs in `device_name`, or None."""
    return next((device for device in DEVICES if _names(device).search(device_name)), None)


def _names(device: Device) -> re.Pattern[str]:
    """Return a pattern that finds A100 in "NVIDIA A100-SXM4-80GB", but not in "RTX A1000"."""
    return re.compile(rf"(?<![a-z0-9]){re.escape(device.name)}(?![0-9])", re.IGNORECASE)


def peak_flops_per_s(*, device_name: str, precision: Precision, allow_tf32: bool = True) -> float | None:
    """Return the peak dense rate in FLOP/s, or None for a device without an entry (CPUs included).

    Args:
        device_name: as torch.cuda.get_device_name() gives it.
        precision: BF16 and FP16 have the same rate on every device listed.
        allow_tf32: whether FP32 matmuls may run on tensor cores as TF32.
    """
    device = find_device(device_name)
    if device is None:
        return None
    if precision is not Precision.FP32:
        return device.bf16_flops_per_s
    return device.tf32_flops_per_s if allow_tf32 else device.fp32_flops_per_s
