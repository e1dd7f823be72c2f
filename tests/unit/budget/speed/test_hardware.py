import dataclasses
import json
from pathlib import Path

import pytest

from chinchilla_ds.budget.speed.devices import DEVICES, find_device, get_device, load_hardware, peak_flops_per_s
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import Precision


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
        ("NVIDIA GB300", 2500),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA H20", 148),
        ("NVIDIA H800", 989.4),
        ("NVIDIA L40", 181.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI325X", 1307.4),
        ("AMD Instinct MI355X", 2516.6),
    ],
)
def test_bf16_peak_by_device_name(device_name: str, tera: float) -> None:
    assert peak_flops_per_s(device_name=device_name, precision=Precision.BF16) == tera * 1e12


@pytest.mark.parametrize(
    "device_name",
    [
        "Intel Xeon",
        "",
        "NVIDIA RTX A1000",
        "NVIDIA L4",
        "Tesla V100",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
    ],
)
def test_unknown_devices_have_no_peak(device_name: str) -> None:
    assert find_device(device_name) is None
    assert peak_flops_per_s(device_name=device_name, precision=Precision.BF16) is None


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA A100 80GB PCIe MIG 2g.20gb"],
)
def test_a_mig_slice_is_not_the_whole_card(name):
    """torch names a slice after its card; MFU against the card's peak would be a seventh of the truth."""
    assert find_device(name) is None
    assert peak_flops_per_s(device_name=name, precision=Precision.BF16) is None
    assert find_device(name.split(" MIG")[0]) is not None, "control: the card"


# Data sheets: memory in GB, memory bandwidth in TB/s, link per direction in GB/s.
NEWER = {
    "GB300": (278, 8, 900),
    "B300": (288, 8, 900),
    "H20": (96, 4, 450),
    "H800": (80, 3.35, 200),
    "L40": (48, 0.864, 32),
    "RTX 4090": (24, 1.008, 32),
    "RTX 5090": (32, 1.792, 64),
    "MI325X": (256, 6, 448),
    "MI355X": (288, 8, 537.6),
}


@pytest.mark.parametrize(("name", "gigabytes", "bandwidth", "link"), [(name, *row) for name, row in NEWER.items()])
def test_newer_devices_are_as_their_data_sheets(name: str, gigabytes: float, bandwidth: float, link: float) -> None:
    device = get_device(name.lower().replace(" ", "-"))
    assert device.memory_bytes is not None
    assert 1e9 <= device.memory_bytes / gigabytes <= 1.08e9  # GB are GiB where the driver's number is known
    assert device.memory_bytes_per_s == bandwidth * 1e12
    assert device.intra_node_bytes_per_s == link * 1e9
    assert device.source.startswith(("NVIDIA", "AMD"))


def test_no_tf32_on_mi355x() -> None:
    """CDNA 4 has none: FP32 with TF32 allowed has no known rate, and MFU is not reported."""
    assert peak_flops_per_s(device_name="AMD Instinct MI355X", precision=Precision.FP32) is None


def test_fp32_depends_on_tf32() -> None:
    name = "NVIDIA A100-SXM4-80GB"
    assert peak_flops_per_s(device_name=name, precision=Precision.FP32) == 156e12
    assert peak_flops_per_s(device_name=name, precision=Precision.FP32, allow_tf32=False) == 19.5e12
    assert peak_flops_per_s(device_name=name, precision=Precision.FP16) == 312e12


def test_every_name_finds_its_own_entry() -> None:
    assert [find_device(f"NVIDIA {device.name}") for device in DEVICES] == list(DEVICES)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "H100"),
        ("H100-SXM", "H100"),
        ("h100-80gb", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100_pcie", "H100 PCIe"),
        ("h100 nvl", "H100 NVL"),
        ("a100", "A100"),
        ("a100-80gb", "A100"),
        ("A100-SXM4-40GB", "A100 40GB"),
        ("gb200-nvl72", "GB200"),
        ("instinct mi300x", "MI300X"),
        ("cpu", "CPU"),
    ],
)
def test_names_that_people_type(name: str, found: str) -> None:
    assert get_device(name).name == found


@pytest.mark.parametrize("name", ["h10", "h100-120gb", "v100", "", "a1000"])
def test_unknown_names_list_what_there_is(name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"must be one of GB300, B300, GB200, .*MI300X, CPU, be described in a `hardware` file, or be module",
    ):
        get_device(name)


def test_near_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'H100'"):
        get_device("h10")


def test_memory_and_links_by_data_sheet() -> None:
    """Gigabytes as sold; NVLink's bidirectional 600, 900 and 1800 GB/s, halved; network cards of 200 and 400 Gb/s."""
    sold = {"A100": 80, "A100 40GB": 40, "H100": 80, "H200": 141, "B200": 180, "GB200": 186, "L40S": 48, "MI300X": 192}
    for name, gigabytes in sold.items():
        device = get_device(name)
        assert 0.93 * gigabytes * 2**30 < device.memory_bytes <= gigabytes * 2**30
    links = {"A100": 300e9, "H100": 450e9, "H200": 450e9, "B200": 900e9, "GB200": 900e9, "MI300X": 448e9}
    assert {name: get_device(name).intra_node_bytes_per_s for name in links} == links
    assert get_device("a100").inter_node_bytes_per_s == 25e9
    assert get_device("h100").inter_node_bytes_per_s == 50e9
    bandwidths = {"A100": 2.039e12, "A100 40GB": 1.555e12, "H100": 3.35e12, "H200": 4.8e12, "B200": 8e12, "L40S": 864e9}
    assert {name: get_device(name).memory_bytes_per_s for name in bandwidths} == bandwidths


def test_fp8_doubles_bf16_where_there_is_any() -> None:
    assert get_device("a100").fp8_flops_per_s is None
    for device in DEVICES:
        if device.fp8_flops_per_s is not None:
            assert device.fp8_flops_per_s == pytest.approx(2 * device.bf16_flops_per_s, rel=0.02)


def test_a_cpu_has_no_rates() -> None:
    cpu = get_device("cpu")
    assert cpu.kind == "cpu"
    assert all(cpu.peak_flops_per_s(precision=precision) is None for precision in Precision)
    assert cpu.memory_bytes is None
    assert peak_flops_per_s(device_name="cpu", precision=Precision.FP32) is None


def write(folder: Path, data: object) -> Path:
    path = folder / "hardware.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_file_adds_a_device(tmp_path: Path) -> None:
    rates = {"name": "B400", "bf16_flops_per_s": 2.25e15, "memory_bytes": 288e9, "memory_bytes_per_s": 8e12}
    path = write(tmp_path, {**rates, "devices_per_node": 8, "aliases": ["Blackwell Ultra"]})
    device = get_device("blackwell-ultra", hardware=path)
    assert (device.name, device.bf16_flops_per_s, device.memory_bytes) == ("B400", 2.25e15, 288 * 10**9)
    assert (device.intra_node_bytes_per_s, device.fp16_flops_per_s) == (None, None)
    assert device.source == str(path)
    assert get_device("h100", hardware=path) == get_device("h100")


def test_a_file_overrides_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, [{"name": "h100", "inter_node_bytes_per_s": 100e9}, {"name": "cpu", "memory_bytes": 2**36}])
    device = get_device("H100", hardware=path)
    assert device == dataclasses.replace(get_device("H100"), inter_node_bytes_per_s=100e9, source=str(path))
    assert get_device("cpu", hardware=path).memory_bytes == 2**36
    assert len(load_hardware(path)) == len(DEVICES)


def test_every_problem_of_a_file(tmp_path: Path) -> None:
    entries = [
        {"name": "X", "bf16_flops_per_s": -1, "memory_byte": 1, "devices_per_node": 2.5, "matmul_efficiency": 1.5},
        {"memory_bytes": "80 GB", "memory_bytes_per_s": True, "kind": "tpu", "aliases": "x", "source": 1},
        "H100",
        {"name": "  ", "fp32_flops_per_s": 1e300},
    ]
    with pytest.raises(ConfigError) as caught:
        load_hardware(write(tmp_path, entries))
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 13
    assert "'X': memory_byte is not a field; did you mean 'memory_bytes'?" in problems
    assert "'X': bf16_flops_per_s is -1; it must be a number of FLOP/s, 1 to 1e+24" in problems
    assert "'X': devices_per_node is 2.5; it must be a whole number of devices, 1 to 1e+24" in problems
    assert "'X': matmul_efficiency is 1.5; it must be a share of the peak, 1e-06 to 1" in problems
    assert "entry 1: memory_bytes is '80 GB'; it must be a whole number of bytes, 1 to 1e+24" in problems
    assert "entry 1: memory_bytes_per_s is True; it must be a number of bytes/s, 1 to 1e+24" in problems
    assert "entry 1: kind is 'tpu'; it must be one of cuda, cpu" in problems
    assert "entry 2 is 'H100'; it must be a JSON object with a name" in problems
    assert all(str(tmp_path) in problem for problem in caught.value.problems)


def test_a_device_described_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="described more than once"):
        load_hardware(write(tmp_path, [{"name": "X1"}, {"name": "x1"}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "the list is empty"),
        ('[{"name": "X",\n"fp32_flops_per_s": NaN}]', "NaN is not a finite number, line 2"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hardware.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_hardware(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_hardware(path)
