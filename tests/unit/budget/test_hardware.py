import pytest

from chinchilla_ds.budget.hardware import DEVICES, find_device, peak_flops_per_s
from chinchilla_ds.plan import Precision


@pytest.mark.parametrize(
    ("device_name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362.05),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_bf16_peak_by_device_name(device_name: str, tera: float) -> None:
    assert peak_flops_per_s(device_name=device_name, precision=Precision.BF16) == tera * 1e12


@pytest.mark.parametrize("device_name", ["Intel Xeon", "", "NVIDIA RTX A1000", "NVIDIA L40", "Tesla V100"])
def test_unknown_devices_have_no_peak(device_name: str) -> None:
    assert find_device(device_name) is None
    assert peak_flops_per_s(device_name=device_name, precision=Precision.BF16) is None


def test_fp32_depends_on_tf32() -> None:
    name = "NVIDIA A100-SXM4-80GB"
    assert peak_flops_per_s(device_name=name, precision=Precision.FP32) == 156e12
    assert peak_flops_per_s(device_name=name, precision=Precision.FP32, allow_tf32=False) == 19.5e12
    assert peak_flops_per_s(device_name=name, precision=Precision.FP16) == 312e12


def test_every_name_finds_its_own_entry() -> None:
    assert [find_device(f"NVIDIA {device.name}") for device in DEVICES] == list(DEVICES)
