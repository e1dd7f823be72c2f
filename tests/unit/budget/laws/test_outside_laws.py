"""Laws and devices that no file of the package knows: those of docs/add-a-scaling-law.md."""

import json
import sys
from pathlib import Path

import pytest

from chinchilla_ds.budget.laws.lookup import compare_laws, get_law
from chinchilla_ds.budget.planner import plan
from chinchilla_ds.budget.speed.devices import find_device, get_device
from chinchilla_ds.cli.main import main
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ConfigError
from tests.documented import code_blocks

CHIPS = """
from chinchilla_ds.budget.speed.devices import Device

CHIP = Device(name="X1", bf16_flops_per_s=5e14, memory_bytes=2**36, memory_bytes_per_s=2e12,
              intra_node_bytes_per_s=2e11, inter_node_bytes_per_s=5e10, host_bytes_per_s=5e10, source="a test")


def chip(*, memory_gib):
    return Device(name="X2", memory_bytes=memory_gib * 2**30, source="a test")


BROKEN = Device(name="X3", memory_bytes=-1, source="a test")
"""
WRONG = """
from chinchilla_ds.budget.laws.forms import Optimum
from my_laws import MINE


class Twice(type(MINE)):
    def optimal(self, *, compute_budget_flops):
        best = super().optimal(compute_budget_flops=compute_budget_flops)
        return Optimum(num_params=best.num_params, num_tokens=2 * best.num_tokens, loss=best.loss)


TWICE = Twice(**vars(MINE))
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    [laws] = code_blocks("add-a-scaling-law.md")
    for name, text in {"my_laws": laws, "my_chips": CHIPS, "my_wrong": WRONG}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_laws", "my_chips", "my_wrong"):
        sys.modules.pop(name, None)


def announce(folder: Path, group: str, name: str, target: str) -> None:
    """Let an installed package announce an entry point."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[chinchilla_ds.{group}]\n{name} = {target}\n")


def test_the_law_of_the_page_splits_the_budget_by_its_closed_form() -> None:
    made = plan(RunConfig(compute_budget_flops=1e20, law="my_laws:MINE"), world_size=1, device="cuda")
    assert (made.prediction.law, made.prediction.loss_law) == ("mine2026", "mine2026")
    best = get_law("my_laws:MINE").optimal(compute_budget_flops=1e20)
    ratio = (1600 / 400) ** (1 / 0.34)
    assert best.num_tokens / best.num_params == pytest.approx(ratio), "alpha = beta: D / N = (B / A)^(1 / alpha)"
    usual = plan(RunConfig(compute_budget_flops=1e20), world_size=1, device="cuda")
    assert abs(made.tokens_per_param / usual.tokens_per_param - 1) > 0.1, "control"


def test_a_function_takes_the_arguments_that_follow_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    best = get_law("my_laws:twenty,tokens_per_param=40").optimal(compute_budget_flops=1e21)
    assert best.num_tokens / best.num_params == pytest.approx(40)
    assert main(["plan", "--flops", "1e20", "--law", "my_laws:twenty,tokens_per_param=40", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["prediction"]["law"], made["prediction"]["loss_law"]) == ("ratio_40", "besiroglu2024")


def test_an_installed_package_announces_a_law(modules: Path) -> None:
    announce(modules, "laws", "mine2026", "my_laws:MINE")
    assert get_law("mine2026").source == "our sweep of spring, 60 runs"
    assert compare_laws(compute_budget_flops=1e20)[-1].name == "mine2026"
    with pytest.raises(ConfigError, match="did you mean 'mine2026'"):
        get_law("mine2025")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_laws:YOURS", "my_laws has no YOURS"),
        ("my_laws:twenty,ratio=3", "unexpected keyword"),
        ("my_laws:MINE,alpha=3", "MINE is not a function, so it takes no arguments"),
        ("my_laws:ParamsConvention.TOTAL", "not a class or function"),
        ("my_chips:chip,memory_gib=3", "is a Device; it must be a Law"),
        ("my_wrong:TWICE", "laws say the best of 6 N D = C"),
        ("no_such_module_anywhere:X", "cannot be imported"),
        ("my_laws:", "neither a name nor module:object"),
    ],
)
def test_what_is_no_law_is_told(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_law(name)


def test_a_device_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_device("my_chips:chip,memory_gib=24").memory_bytes == 24 * 2**30
    assert main(["plan", "--flops", "1e20", "--gpus", "8", "--gpu", "my_chips:CHIP", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["cluster"]["device"] == "X1"
    assert made["cluster"]["device_memory_bytes"] == 2**36
    assert made["step_time"] is not None


def test_an_installed_package_announces_a_device(modules: Path) -> None:
    assert find_device("Maker X1 64GB") is None, "control"
    announce(modules, "hardware", "x1", "my_chips:CHIP")
    assert get_device("x1").name == "X1"
    assert find_device("Maker X1 64GB") == get_device("x1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_chips:BROKEN", "memory_bytes is -1; it must be"),
        ("my_laws:MINE", "not a class or function"),
        ("x9", "must be"),
    ],
)
def test_what_is_no_device_is_told(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_device(name)
