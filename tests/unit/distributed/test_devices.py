"""Which device is chosen, with faked queries: no GPU is needed."""

import warnings
from pathlib import Path

import pytest
import torch

from chinchilla_ds.distributed import devices
from chinchilla_ds.distributed.devices import device_type, seen_gpus
from chinchilla_ds.errors import LayoutError

OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def gpu_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows a GPU, and torch does not."""

    def is_available() -> bool:
        warnings.warn(OLD, stacklevel=1)
        return False

    def init() -> None:
        raise RuntimeError(OLD)

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "seen_gpus", lambda: ["/dev/nvidia0"])
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpu_of_no_use")
@pytest.mark.parametrize("visible", [None, "0", "7"])
def test_a_gpu_that_torch_cannot_use_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is not None:  # the deepspeed launcher sets it, also without a GPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(LayoutError) as refused:
        device_type()
    (problem,) = refused.value.problems
    assert "a GPU (/dev/nvidia0)" in problem
    assert "driver on your system is too old (found version 11040)" in problem
    assert "DS_ACCELERATOR=cpu" in problem
    assert ("CUDA_VISIBLE_DEVICES is" in problem) == (visible is not None)


@pytest.mark.usefixtures("gpu_of_no_use")
def test_a_build_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(LayoutError, match="it was built without CUDA"):
        device_type()


@pytest.mark.usefixtures("gpu_of_no_use")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DS_ACCELERATOR", "cpu"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", "-1"),
        ("CUDA_VISIBLE_DEVICES", "NoDevFiles"),
    ],
)
def test_the_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert device_type() == "cpu"


def test_no_gpu_and_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(devices, "seen_gpus", lambda: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device_type() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_type() == "cuda"


def test_what_the_kernel_shows(tmp_path: Path) -> None:
    assert seen_gpus(tmp_path) == []
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "nvidia1"):
        (tmp_path / "dev" / name).touch()
    assert seen_gpus(tmp_path) == [str(tmp_path / "dev/nvidia1")]
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert len(seen_gpus(tmp_path)) == 2
