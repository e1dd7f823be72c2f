"""What DeepSpeed is told, and that it refuses nothing which the budget has let through."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import emit, resolve
from chinchilla_ds.budget.deepspeed_json.table import SECTIONS
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.engine import deepspeed_check
from chinchilla_ds.engine.deepspeed_check import check_with_deepspeed
from chinchilla_ds.errors import DsConfigError
from chinchilla_ds.run_plan import Offload, Precision, RunPlan

VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, 2, -1, 0.5, 5e8, 5e8 + 0.5, 10**300, -1e300),
    *("auto", "x", "fp32", "bf16", "info", "cpu", "AdamW", "", "\x00"),
    *(None, [], [1, "x"], ["x"], [0.9, 0.95], {}, {"enabled": True}, {"enabled": "auto"}, {"enabled": {}}, {"x": {}}),
)
PATHS = [(*path, name) for path, keys in SECTIONS.items() for name in keys]


def plan_for(stage: int, precision: Precision = Precision.FP32) -> RunPlan:
    return make_plan(RunConfig(layout=LayoutConfig(zero_stage=stage), precision=precision), world_size=1, device="cpu")


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[no-any-return]


def test_every_value_of_every_key_is_refused_in_words_or_read_by_deepspeed() -> None:
    plans = [plan_for(1, Precision.BF16), plan_for(3)]
    num_accepted = 0
    for path in PATHS:
        for value in VALUES:
            for plan in plans:
                ds = nested(path, value)
                before = copy.deepcopy(ds)
                resolved = None
                with contextlib.suppress(DsConfigError):
                    resolved = resolve(ds, plan)
                assert ds == before
                if resolved is not None:
                    assert not has_auto(resolved), resolved
                    check_with_deepspeed(resolved, plan)
                    num_accepted += 1
    assert num_accepted > 1000


def has_auto(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_auto, value.values()))
    return isinstance(value, str) and value == "auto"


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        ({"fp16": {"enabled": False, "loss_scale": "x"}}, "loss_scale: .*must be a number .DeepSpeedFP16Config."),
        ({"zero_optimization": {"stage": 1, "shiny": 1}}, "shiny: Extra inputs are not permitted"),
        ({"zero_optimization": {"stage": 9}}, "stage: "),
        ({"elasticity": {}}, "Elastic training has been removed"),
        ({"gradient_allreduce_op": "median"}, "Invalid gradient_allreduce_op"),
        ({"checkpoint": {"tag_validation": "sometimes"}}, "invalid tag_validation"),
    ],
)
def test_what_deepspeed_refuses_is_the_users_error(ds: dict[str, Any], expected: str) -> None:
    """Past `resolve`, as a key of a new version could come."""
    plan = plan_for(1)
    with pytest.raises(DsConfigError, match=rf"DeepSpeed 0.19.8 refuses the ds_config: .*{expected}"):
        check_with_deepspeed(emit(plan) | ds, plan)


def test_what_deepspeed_refuses_of_the_plan_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_check, "emit", lambda plan: {"train_micro_batch_size_per_gpu": 0})
    with pytest.raises(AssertionError):
        check_with_deepspeed({"train_micro_batch_size_per_gpu": 0}, plan_for(1))


def test_a_folder_on_nvme_that_this_machine_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layout = LayoutConfig(zero_stage=3, offload_optimizer=Offload.NVME)
    plan = make_plan(RunConfig(layout=layout), world_size=1, device="cpu")
    for folder, is_fine in ((tmp_path / "new", True), (tmp_path / "file" / "x", False)):
        section = {"device": "nvme", "nvme_path": str(folder)}
        resolved = resolve({"zero_optimization": {"offload_optimizer": section}}, plan)
        with (
            contextlib.nullcontext()
            if is_fine
            else pytest.raises(DsConfigError, match=r"nvme_path is .*cannot create a folder")
        ):
            check_with_deepspeed(resolved, plan)


def test_a_precision_that_the_device_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    plan = plan_for(1, Precision.FP16)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    check_with_deepspeed(emit(plan), plan)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(DsConfigError, match="precision is fp16, which DeepSpeed cannot compute with on this cpu"):
        check_with_deepspeed(emit(plan), plan)
