import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ChinchillaError, ConfigError, LayoutError
from chinchilla_ds.runs.plan_file import read_plan

PLAN = make_plan(RunConfig(compute_budget_flops=1e11), world_size=1, device="cpu")


def _edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(PLAN.to_json())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert read_plan(tmp_path / "plan.json", world_size=1) == PLAN


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["shape"].update(hidden_size=-64), "shape.hidden_size is -64; it must be at least 1"),
        (lambda data: data["layout"].update(data_parallel_size=0), "layout.data_parallel_size is 0; it must be at lea"),
        (lambda data: data["shape"].update(num_layers=7), "num_params is .*, but its shape has .* parameters"),
        (lambda data: data["batch"].update(train_iters=7), "num_tokens is .*, but its batch and steps give .* tokens"),
        (lambda data: data.update(sead=1), "plan.sead is not a field; did you mean 'seed'"),
        (lambda data: data.clear(), "is not a chinchilla-ds plan of format_version 2"),
    ],
)
def test_a_plan_that_was_edited(tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    path = _edited(tmp_path / "plan.json", edit)
    with pytest.raises(ConfigError, match=message) as caught:
        read_plan(path, world_size=1)
    assert str(caught.value).startswith(f"plan {path}: ")


def test_another_world(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    with pytest.raises(LayoutError, match="is for 1 ranks, and 4 were started; start it with deepspeed --num_gpus 1"):
        read_plan(tmp_path / "plan.json", world_size=4)


@pytest.mark.parametrize("content", [None, b"\xff", b"{"])
def test_no_plan_at_all(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ChinchillaError, match=r"plan .*plan.json"):
        read_plan(tmp_path / "plan.json", world_size=1)
