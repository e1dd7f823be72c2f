"""Accelerators: peak rates, memory and links, by name; a JSON file adds others.

An unknown rate is None, and what depends on it (MFU, step time) is not reported: never guessed.

Conventions. Rates are dense, not sparse. Links are per device and direction: half of what data sheets call
bidirectional. Memory is what the driver reports (`nvidia-smi`, memory.total): vendors write GB for GiB and reserve a
part; where no driver's number is known, it is the data sheet's in GB of 10^9 bytes, which is less. The network is that
of the usual cluster, one card per device: an assumption that a hardware file overrides.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds import plugins
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.plugins import Kind
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.structured import read_json

KINDS = ("cuda", "cpu")
_MIB, _GIB = 2**20, 2**30
_GBIT = 1e9 / 8
_PCIE4, _PCIE5 = 32e9, 64e9
"""Bytes per second and direction of 16 lanes."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, and its usual machine. None: unknown."""

    name: str
    """The device's own name: torch.cuda.get_device_name() contains each of its words, whole and in any case."""
    aliases: tuple[str, ...] = ()
    """Other common names."""
    kind: str = "cuda"
    """torch's name for the kind: "cuda" (AMD's as well) or "cpu"."""
    bf16_flops_per_s: float | None = None
    """BF16 on tensor cores."""
    fp16_flops_per_s: float | None = None
    """FP16 on tensor cores, FP32 accumulation."""
    fp8_flops_per_s: float | None = None
    """FP8 on tensor cores; this package does not train in it yet."""
    tf32_flops_per_s: float | None = None
    """FP32 inputs rounded to TF32 on tensor cores."""
    fp32_flops_per_s: float | None = None
    """Plain FP32."""
    matmul_efficiency: float = 0.75
    """Share of the peak that large BF16 matmuls reach. Source: "maximum achievable matmul FLOPS" in Bekman,
    ml-engineering (github.com/stas00/ml-engineering, compute/accelerator); the default where it has no row."""
    attention_efficiency: float = 0.35
    """Share of the peak that fused causal attention reaches over long sequences with heads of 128, forward and
    backward, masked half not counted; `budget.speed.rates` lowers it for short ones and small heads. Source:
    FlashAttention-2 (Dao 2023, arXiv:2307.08691), section 4.1: 335 TFLOP/s on H100 at 16k; the default elsewhere."""
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    """HBM or GDDR bandwidth."""
    intra_node_bytes_per_s: float | None = None
    """NVLink, Infinity Fabric, or PCIe if there is nothing else."""
    devices_per_node: int = 8
    """Devices that the fast link joins."""
    inter_node_bytes_per_s: float | None = None
    """Network, per device."""
    host_bytes_per_s: float | None = None
    """To CPU memory: PCIe, or NVLink-C2C."""
    host_memory_bytes: int | None = None
    """CPU memory of the node per device, for offloaded states; None: unknown, and not checked."""
    source: str

    def peak_flops_per_s(self, *, precision: Precision, allow_tf32: bool = False) -> float | None:
        """Return the peak dense rate in FLOP/s of matmuls in `precision`."""
        if precision is Precision.FP32:
            return self.tf32_flops_per_s if allow_tf32 else self.fp32_flops_per_s
        return self.fp16_flops_per_s if precision is Precision.FP16 else self.bf16_flops_per_s


def _tensor_cores(*, bf16: float, fp8: float | None, tf32: float | None, fp32: float) -> dict[str, Any]:
    """Return rates from TFLOP/s; FP16 runs at BF16's on every device listed."""
    tera = {"bf16": bf16, "fp16": bf16, "fp8": fp8, "tf32": tf32, "fp32": fp32}
    return {f"{name}_flops_per_s": None if rate is None else rate * 1e12 for name, rate in tera.items()}


_A100: dict[str, Any] = {
    **_tensor_cores(bf16=312, fp8=None, tf32=156, fp32=19.5),
    "matmul_efficiency": 0.869,
    "attention_efficiency": 0.63,  # arXiv:2307.08691, figure 4: 190 TFLOP/s causal, heads of 128, at 16k
    "intra_node_bytes_per_s": 300e9,
    "inter_node_bytes_per_s": 200 * _GBIT,
    "host_bytes_per_s": _PCIE4,
    "host_memory_bytes": 256 * _GIB,  # DGX A100 640GB user guide: 2 TB for 8 GPUs
}
_HOPPER: dict[str, Any] = {
    **_tensor_cores(bf16=989.4, fp8=1978.9, tf32=494.7, fp32=66.9),
    "matmul_efficiency": 0.803,
    "intra_node_bytes_per_s": 450e9,
    "inter_node_bytes_per_s": 400 * _GBIT,
    "host_bytes_per_s": _PCIE5,
    "host_memory_bytes": 256 * _GIB,  # DGX H100 and H200 user guide: 2 TB for 8 GPUs
}
_NVL: dict[str, Any] = {
    **_tensor_cores(bf16=835.5, fp8=1671, tf32=417.5, fp32=60),
    "inter_node_bytes_per_s": 200 * _GBIT,
    "host_bytes_per_s": _PCIE5,
}

DEVICES: tuple[Device, ...] = (
    # The more specific name comes first: the first one found in the device's name wins.
    Device(
        name="GB300",
        aliases=("GB300 NVL72",),
        **_tensor_cores(bf16=2500, fp8=5000, tf32=1250, fp32=80),
        memory_bytes=int(278e9),
        memory_bytes_per_s=8e12,
        intra_node_bytes_per_s=900e9,
        devices_per_node=72,
        inter_node_bytes_per_s=800 * _GBIT,
        host_bytes_per_s=225e9,
        host_memory_bytes=240 * _GIB,
        source="NVIDIA GB300 NVL72 data sheet, per GPU: half of the sparse rates (360 PF of BF16 for 72), 20 TB of "
        "HBM3e at 576 TB/s and 130 TB/s of NVLink for 72, ConnectX-8; two GPUs share the C2C and 480 GB of LPDDR5X",
    ),
    Device(
        name="B300",
        aliases=("B300 288GB",),
        **_tensor_cores(bf16=2250, fp8=4500, tf32=1125, fp32=75),
        memory_bytes=int(288e9),
        memory_bytes_per_s=8e12,
        intra_node_bytes_per_s=900e9,
        inter_node_bytes_per_s=800 * _GBIT,
        host_bytes_per_s=_PCIE5,
        source="NVIDIA HGX B300 and DGX B300 data sheets: half of the sparse rates (36 PF of BF16 for 8), 2.3 TB, 14.4 "
        "TB/s of NVLink and 1.6 TB/s of network for 8",
    ),
    Device(
        name="GB200",
        aliases=("GB200 NVL72",),
        **_tensor_cores(bf16=2500, fp8=5000, tf32=1250, fp32=80),
        matmul_efficiency=0.729,
        memory_bytes=189471 * _MIB,
        memory_bytes_per_s=8e12,
        intra_node_bytes_per_s=900e9,
        devices_per_node=72,
        inter_node_bytes_per_s=400 * _GBIT,
        host_bytes_per_s=225e9,
        host_memory_bytes=240 * _GIB,
        source="NVIDIA GB200 NVL72 data sheet, per GPU: half of the sparse rates; 186 GB; two GPUs share the C2C "
        "and 480 GB of LPDDR5X",
    ),
    Device(
        name="B200",
        aliases=("B200 180GB",),
        **_tensor_cores(bf16=2250, fp8=4500, tf32=1125, fp32=75),
        matmul_efficiency=0.776,
        memory_bytes=183359 * _MIB,
        memory_bytes_per_s=8e12,
        intra_node_bytes_per_s=900e9,
        inter_node_bytes_per_s=400 * _GBIT,
        host_bytes_per_s=_PCIE5,
        host_memory_bytes=256 * _GIB,
        source="NVIDIA HGX B200 and DGX B200 data sheets (18 PF dense BF16, 1,440 GB and 64 TB/s for 8 GPUs)",
    ),
    Device(
        name="H200 NVL",
        **_NVL,
        memory_bytes=143771 * _MIB,
        memory_bytes_per_s=4.8e12,
        intra_node_bytes_per_s=450e9,
        devices_per_node=4,
        source="NVIDIA H200 NVL data sheet: half of the sparse rates; 141 GB; NVLink bridge over four cards",
    ),
    Device(
        name="GH200",
        aliases=("GH200 96GB", "GH200 480GB"),
        **_HOPPER | {"host_bytes_per_s": 450e9, "host_memory_bytes": 480 * _GIB, "matmul_efficiency": 0.836},
        memory_bytes=97871 * _MIB,
        memory_bytes_per_s=4e12,
        devices_per_node=1,
        source="NVIDIA GH200 data sheet: half of the sparse rates; 96 GB HBM3; NVLink-C2C 900 GB/s; one GPU per node",
    ),
    Device(
        name="H200",
        aliases=("H200 141GB",),
        **_HOPPER,
        memory_bytes=143771 * _MIB,
        memory_bytes_per_s=4.8e12,
        source="NVIDIA H200 SXM data sheet: half of the sparse rates; 141 GB",
    ),
    Device(
        name="H20",
        aliases=("H20 96GB",),
        **_HOPPER
        | _tensor_cores(bf16=148, fp8=296, tf32=74, fp32=44)
        | {"matmul_efficiency": Device.matmul_efficiency},
        memory_bytes=97871 * _MIB,
        memory_bytes_per_s=4e12,
        source="NVIDIA H20 product brief: dense rates; 96 GB HBM3; NVLink 900 GB/s",
    ),
    Device(
        name="H800",
        aliases=("H800 80GB",),
        **_HOPPER | {"intra_node_bytes_per_s": 200e9},
        memory_bytes=81559 * _MIB,
        memory_bytes_per_s=3.35e12,
        source="NVIDIA H800 SXM data sheet: an H100 SXM with NVLink of 400 GB/s",
    ),
    Device(
        name="H100 NVL",
        aliases=("H100 NVL 94GB",),
        **_NVL,
        memory_bytes=95830 * _MIB,
        memory_bytes_per_s=3.938e12,
        intra_node_bytes_per_s=_PCIE5,
        source="NVIDIA H100 NVL data sheet: half of the sparse rates; 94 GB; its NVLink bridge joins two cards only",
    ),
    Device(
        name="H100 PCIe",
        aliases=("H100 PCIe 80GB",),
        **_tensor_cores(bf16=756, fp8=1513, tf32=378, fp32=51.2),
        memory_bytes=81559 * _MIB,
        memory_bytes_per_s=2.0e12,
        intra_node_bytes_per_s=_PCIE5,
        inter_node_bytes_per_s=200 * _GBIT,
        host_bytes_per_s=_PCIE5,
        source="NVIDIA H100 PCIe data sheet: half of the sparse rates; 80 GB; its NVLink bridge joins two cards only",
    ),
    Device(
        name="H100",
        aliases=("H100 80GB",),
        **_HOPPER,
        memory_bytes=81559 * _MIB,
        memory_bytes_per_s=3.35e12,
        source="NVIDIA H100 SXM data sheet: half of the sparse rates; 80 GB",
    ),
    Device(
        name="A100 40GB",
        **_A100 | {"host_memory_bytes": 128 * _GIB},
        memory_bytes=40960 * _MIB,
        memory_bytes_per_s=1.555e12,
        source="NVIDIA A100 data sheet, SXM 40 GB; DGX A100 320GB: 1 TB for 8 GPUs",
    ),
    Device(
        name="A100",
        aliases=("A100 80GB",),
        **_A100,
        memory_bytes=81920 * _MIB,
        memory_bytes_per_s=2.039e12,
        source="NVIDIA A100 data sheet, SXM 80 GB",
    ),
    Device(
        name="L40S",
        aliases=("L40S 48GB",),
        **_tensor_cores(bf16=362.05, fp8=733, tf32=183, fp32=91.6),
        memory_bytes=46068 * _MIB,
        memory_bytes_per_s=864e9,
        intra_node_bytes_per_s=_PCIE4,
        inter_node_bytes_per_s=200 * _GBIT,
        host_bytes_per_s=_PCIE4,
        source="NVIDIA L40S data sheet; 48 GB, of which ECC takes a part; no NVLink",
    ),
    Device(
        name="L40",
        aliases=("L40 48GB",),
        **_tensor_cores(bf16=181.05, fp8=362, tf32=90.5, fp32=90.5),
        memory_bytes=46068 * _MIB,
        memory_bytes_per_s=864e9,
        intra_node_bytes_per_s=_PCIE4,
        inter_node_bytes_per_s=200 * _GBIT,
        host_bytes_per_s=_PCIE4,
        source="NVIDIA L40 data sheet; 48 GB, of which ECC takes a part; no NVLink",
    ),
    Device(
        name="RTX 5090",
        **_tensor_cores(bf16=209.5, fp8=419, tf32=104.8, fp32=104.8),
        memory_bytes=32607 * _MIB,
        memory_bytes_per_s=1.792e12,
        intra_node_bytes_per_s=_PCIE5,
        host_bytes_per_s=_PCIE5,
        source="NVIDIA RTX Blackwell GPU architecture white paper, appendix A: dense, FP32 accumulation; 32 GB; no "
        "NVLink",
    ),
    Device(
        name="RTX 4090",
        **_tensor_cores(bf16=165.2, fp8=330.3, tf32=82.6, fp32=82.6),
        memory_bytes=24564 * _MIB,
        memory_bytes_per_s=1.008e12,
        intra_node_bytes_per_s=_PCIE4,
        host_bytes_per_s=_PCIE4,
        source="NVIDIA Ada GPU architecture white paper, appendix A: dense, FP32 accumulation; 24 GB; no NVLink",
    ),
    Device(
        name="MI355X",
        aliases=("MI355X 288GB",),
        **_tensor_cores(bf16=2516.6, fp8=5033.2, tf32=None, fp32=157.3),
        memory_bytes=int(288e9),
        memory_bytes_per_s=8e12,
        intra_node_bytes_per_s=537.6e9,
        inter_node_bytes_per_s=400 * _GBIT,
        host_bytes_per_s=_PCIE5,
        source="AMD Instinct MI355X data sheet: without sparsity; 288 GB; seven Infinity Fabric links of 153.6 GB/s; "
        "no TF32",
    ),
    Device(
        name="MI325X",
        aliases=("MI325X 256GB",),
        **_tensor_cores(bf16=1307.4, fp8=2614.9, tf32=653.7, fp32=163.4),
        matmul_efficiency=0.514,  # MI300X's: the same compute dies
        memory_bytes=int(256e9),
        memory_bytes_per_s=6e12,
        intra_node_bytes_per_s=448e9,
        inter_node_bytes_per_s=400 * _GBIT,
        host_bytes_per_s=_PCIE5,
        source="AMD Instinct MI325X data sheet; 256 GB; seven Infinity Fabric links of 128 GB/s",
    ),
    Device(
        name="MI300X",
        aliases=("MI300X 192GB",),
        **_tensor_cores(bf16=1307.4, fp8=2614.9, tf32=653.7, fp32=163.4),
        matmul_efficiency=0.514,
        memory_bytes=196592 * _MIB,
        memory_bytes_per_s=5.3e12,
        intra_node_bytes_per_s=448e9,
        inter_node_bytes_per_s=400 * _GBIT,
        host_bytes_per_s=_PCIE5,
        source="AMD Instinct MI300X data sheet; 192 GB; seven Infinity Fabric links of 128 GB/s",
    ),
    Device(
        name="CPU",
        kind="cpu",
        devices_per_node=1,
        source="none: CPUs differ in cores, clock and memory; describe yours in a hardware file",
    ),
)

_SAID_OF_MANY = {"nvidia", "amd", "instinct", "sxm", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e", "oam"}


_LESS_THAN_ITS_NAME = re.compile(r"\b(MIG|Laptop|Max-Q|\d090 D)\b", re.IGNORECASE)


def find_device(device_name: str, /) -> Device | None:
    """Return the entry whose name occurs in `device_name`, as torch.cuda.get_device_name() gives it, or None.

    A slice of a card (MIG) and a smaller card of the same number (Laptop, D) are not that card.

    Entries are ours first, then what installed packages announce.
    """
    if _LESS_THAN_ITS_NAME.search(device_name):
        return None
    devices = itertools.chain(DEVICES, map(_device_from_outside, plugins.names(Kind.HARDWARE)))
    return next((device for device in devices if all(word.search(device_name) for word in _words(device))), None)


def _words(device: Device) -> Iterator[re.Pattern[str]]:
    """Yield patterns that find A100 in "NVIDIA A100-SXM4-80GB", but not in "RTX A1000"."""
    for word in device.name.split():
        yield re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![0-9])", re.IGNORECASE)


def peak_flops_per_s(*, device_name: str, precision: Precision, allow_tf32: bool = True) -> float | None:
    """Return the peak dense rate in FLOP/s, or None for a device without one (CPUs included).

    Args:
        device_name: as torch.cuda.get_device_name() gives it.
        precision: BF16 and FP16 have the same rate on every device listed.
        allow_tf32: whether FP32 matmuls may run on tensor cores as TF32.
    """
    device = find_device(device_name)
    return None if device is None else device.peak_flops_per_s(precision=precision, allow_tf32=allow_tf32)


def get_device(name: str, /, *, hardware: Path | str | None = None) -> Device:
    """Return the device that a person names: h100, H100-SXM, a100-40gb, "NVIDIA H100 80GB HBM3", my_module:CHIP.

    Args:
        name: the device, one that an installed package announces as an entry point of `chinchilla_ds.hardware`, or
            `module:object`.
        hardware: JSON file of further devices, as `load_hardware` reads it.

    Raises:
        ConfigError: no such device (the message lists them all), or a hardware file with problems.
    """
    devices = DEVICES if hardware is None else load_hardware(hardware)
    known = {_spelling(text): device for device in devices for text in (device.name, *device.aliases)}
    if device := known.get(_spelling(name)):
        return device
    announced = plugins.names(Kind.HARDWARE)
    if ":" in name or name.partition(",")[0] in announced:
        return _device_from_outside(name)
    listed = [*dict.fromkeys(device.name for device in known.values()), *announced]
    near = did_you_mean(name.upper(), listed) or did_you_mean(name, announced)
    every = ", ".join(listed)
    raise ConfigError(
        f"`gpu` ({name!r}) must be one of {every}, be described in a `hardware` file, or be module:object{near}"
    )


def _device_from_outside(name: str) -> Device:
    """Return a device that is named as a plugin is.

    Raises:
        ConfigError: it cannot be loaded, is no Device, or has a value out of range.
    """
    device = plugins.find_object(Kind.HARDWARE, name, kind_of=Device)
    assert isinstance(device, Device)
    values = {field.name: getattr(device, field.name) for field in dataclasses.fields(device)}
    if problems := list(_entry_problems({**values, "aliases": list(device.aliases)}, 0)):
        raise ConfigError([f"hardware {name}: {problem}" for problem in problems])
    return device


def _spelling(name: str) -> tuple[str, ...]:
    """Return the sorted words of a name, without uninformative ones."""
    return tuple(sorted(set(re.findall(r"[a-z0-9]+", name.lower())) - _SAID_OF_MANY))


_UNITS = {
    "flops_per_s": "FLOP/s",
    "memory_bytes": "bytes",
    "bytes_per_s": "bytes/s",
    "devices_per_node": "devices",
}
_LARGEST = 1e24
"""Far beyond any machine, and far from overflow in the plan's arithmetic."""
_LEAST_EFFICIENCY = 1e-6
_WHOLE = ("memory_bytes", "host_memory_bytes", "devices_per_node")


def load_hardware(path: Path | str, /) -> tuple[Device, ...]:
    """Return the devices of a JSON file, then those of DEVICES that it does not replace.

    The file holds one object or a list of them. Each has `name` and any other field of `Device`. An entry with the name
    of a listed device keeps the fields that the file leaves out; for a new device they are unknown.

    Raises:
        ConfigError: unreadable, not JSON, or every field that is unknown, of the wrong type, or out of range.
    """
    data = read_json(Path(path), what="hardware file")
    entries = data if isinstance(data, list) else [data]
    problems = [text for index, entry in enumerate(entries) for text in _entry_problems(entry, index)]
    if not entries:
        problems = ["the list is empty; it must hold at least one device"]
    if not problems:
        names = [_spelling(entry["name"]) for entry in entries]
        twice = {entry["name"] for entry, name in zip(entries, names, strict=True) if names.count(name) > 1}
        problems = [f"{name!r} is described more than once; keep one" for name in sorted(twice)]
    if problems:
        raise ConfigError([f"hardware file {path}: {problem}" for problem in problems])
    listed = {_spelling(device.name): device for device in DEVICES}
    own = {_spelling(entry["name"]): _device(entry, listed.get(_spelling(entry["name"])), path) for entry in entries}
    return (*own.values(), *(device for name, device in listed.items() if name not in own))


def _device(entry: Mapping[str, Any], listed: Device | None, path: Path | str) -> Device:
    values = {"source": str(path), **entry}
    if "aliases" in entry:
        values["aliases"] = tuple(entry["aliases"])
    for name in _WHOLE:
        if values.get(name) is not None:
            values[name] = int(values[name])
    return Device(**values) if listed is None else dataclasses.replace(listed, **(values | {"name": listed.name}))


def _entry_problems(entry: Any, index: int) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"entry {index} is {entry!r:.40}; it must be a JSON object with a name"
        return
    fields = {field.name: field for field in dataclasses.fields(Device)}
    name = entry.get("name")
    where = repr(name) if isinstance(name, str) else f"entry {index}"
    if not isinstance(name, str) or not _spelling(name):
        yield f"{where}: name is {name!r}; it must be text with a letter or digit, such as 'H100'"
    for key, value in entry.items():
        if key not in fields:
            yield f"{where}: {key} is not a field{did_you_mean(key, fields)}"
        elif key == "aliases":
            if not isinstance(value, list) or not all(isinstance(alias, str) for alias in value):
                yield f"{where}: aliases is {value!r}; it must be a list of texts"
        elif key == "kind":
            if value not in KINDS:
                yield f"{where}: kind is {value!r}; it must be one of {', '.join(KINDS)}"
        elif key == "source":
            if not isinstance(value, str):
                yield f"{where}: source is {value!r}; it must be text"
        elif key != "name" and not _fits(key, value):
            yield f"{where}: {key} is {value!r}; it must be {_wanted(key)}"


def _wanted(key: str) -> str:
    if key.endswith("efficiency"):
        return f"a share of the peak, {_LEAST_EFFICIENCY:g} to 1"
    unit = next(text for ending, text in _UNITS.items() if key.endswith(ending))
    return f"a {'whole ' if key in _WHOLE else ''}number of {unit}, 1 to {_LARGEST:g}"


def _fits(key: str, value: Any) -> bool:
    if value is None:
        return not key.endswith("efficiency") and key != "devices_per_node"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if key.endswith("efficiency"):
        return _LEAST_EFFICIENCY <= value <= 1
    return 1 <= value <= _LARGEST and (key not in _WHOLE or value == int(value))
