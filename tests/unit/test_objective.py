"""The face of an objective without torch: sums, names, what it costs a plan, and what metrics show of it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.budget.cluster_plan import ClusterRequest, plan_on_cluster
from chinchilla_ds.budget.plan_checks import plan_problems
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.speed.devices import get_device
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ConfigError, LayoutError
from chinchilla_ds.objective import Objective, RankBytes, Sum, make_objective, spec_of
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.run_plan import DEFAULT_OBJECTIVE, RunPlan
from chinchilla_ds.training.callbacks.tracking import step_metrics
from tests.unit.training.states import make_state, take_step


class Dear(Objective):
    """As many FLOPs again as the decoder's, and bytes that the ranks share."""

    num_bytes = 0

    def flops_per_token(self, shape: Any, /) -> float:
        return decoder_flops_per_token(shape=shape)

    def rank_bytes(self, *, shape: Any, batch: Any, layout: Any) -> RankBytes:
        return RankBytes(states=self.num_bytes // layout.world_size, activations=1)


class Hungry(Dear):
    num_bytes = 400 * 2**30


DEAR, HUNGRY = (PluginSpec(name=f"{__name__}:{kind.__name__}") for kind in (Dear, Hungry))


def test_the_face_needs_no_torch() -> None:
    script = (
        "import sys, chinchilla_ds.objective; print({'torch', 'numpy', 'deepspeed', 'megatron'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_default_has_a_name_of_its_own() -> None:
    assert type(make_objective(PluginSpec(name=DEFAULT_OBJECTIVE))) is Objective
    assert spec_of(Objective()) == PluginSpec(name=DEFAULT_OBJECTIVE)
    assert Objective().is_evaluation_loss
    assert not Sum(one=Objective()).is_evaluation_loss


# ---- cost -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> RunPlan:
    return make_plan(RunConfig(compute_budget_flops=1e15), world_size=1, device="cpu")


def test_a_budget_pays_for_the_objective_too(plain: RunPlan) -> None:
    dear = make_plan(RunConfig(compute_budget_flops=1e15, objective=DEAR), world_size=1, device="cpu")
    assert dear.shape == plain.shape
    assert dear.num_tokens == pytest.approx(plain.num_tokens / 2, rel=0.01)
    assert dear.true_flops == pytest.approx(1e15, rel=0.01)
    assert dear.flops_per_token == 2 * plain.flops_per_token
    assert any("50.0% of all; the budget buys" in reason for reason in dear.reasons)
    assert list(plan_problems(dear)) == []
    forged = dataclasses.replace(dear, objective_flops_per_token=0.0)
    assert any("flops_per_token" in problem for problem in plan_problems(forged))


def test_tokens_that_were_asked_for_stay(plain: RunPlan) -> None:
    dear = make_plan(RunConfig(num_tokens=plain.num_tokens, objective=DEAR), world_size=1, device="cpu")
    assert dear.num_tokens == pytest.approx(plain.num_tokens, rel=0.01)
    assert dear.compute_budget_flops == pytest.approx(dear.true_flops, rel=0.01)


def test_its_bytes_are_part_of_the_peak(plain: RunPlan) -> None:
    dear = make_plan(RunConfig(compute_budget_flops=1e15, objective=DEAR), world_size=1, device="cpu")
    assert plain.memory_bytes is not None
    assert dear.memory_bytes is not None
    assert (plain.memory_bytes.objective, dear.memory_bytes.objective) == (0, 1)


def test_a_layout_leaves_room_for_it() -> None:
    def planned(objective: PluginSpec, world_size: int) -> RunPlan:
        config = RunConfig(compute_budget_flops=1e20, objective=objective)
        request = ClusterRequest(device=get_device("h100"), world_size=world_size, devices_per_node=8)
        return plan_on_cluster(config, request=request).plan

    hungry = planned(HUNGRY, 8)
    memory, cluster = hungry.memory_bytes, hungry.cluster
    assert memory is not None
    assert cluster is not None
    assert memory.objective == 50 * 2**30 + 1
    assert memory.total <= cluster.device_memory_bytes
    with pytest.raises(LayoutError, match=r"102\.68 GiB per device \(.*, the objective's 100\.00 GiB among them\)"):
        planned(HUNGRY, 4)  # more than a device has
    dear, plain = planned(DEAR, 8), planned(PluginSpec(name=DEFAULT_OBJECTIVE), 8)
    assert dear.step_time is not None
    assert plain.step_time is not None
    per_token = [plan.step_time.compute_s / plan.tokens_per_iter for plan in (dear, plain)]  # type: ignore[union-attr]
    assert per_token[0] == pytest.approx(2 * per_token[1], rel=0.05)


def test_a_plan_of_before_has_the_default(plain: RunPlan) -> None:
    data = json.loads(plain.to_json())
    del data["objective"], data["objective_flops_per_token"], data["memory_bytes"]["objective"]
    assert RunPlan.from_json(json.dumps(data)) == plain


# ---- sums -----------------------------------------------------------------------------------------------------------


class Keeps(Objective):
    """Keeps what it was told."""

    scalar_names = ("seen",)

    def __init__(self, companion: Any = None, *, folds: bool = False) -> None:
        self.kept: dict[str, Any] = {}
        self.beside, self.is_folded = companion, folds

    def companion(self) -> Any:
        return self.beside

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: Any, /) -> None:
        self.kept = dict(state)

    def folds(self, name: str, /) -> bool:
        return self.is_folded

    def may_be_absent(self, name: str, /) -> bool:
        self.kept["name"] = name
        return False


def test_a_sum_keeps_its_parts_apart() -> None:
    first, second = Keeps(), Keeps()
    both = Sum(a=first, b=second)
    assert both.scalar_names == ("a/seen", "b/seen")
    assert not both.folds("objective.b.scale")
    assert Sum(a=Keeps(folds=True), b=second).folds("objective.a.scale")
    both.load_state_dict({"a": {"x": 1}, "b": {"x": 2}})
    assert (first.kept, second.kept) == ({"x": 1}, {"x": 2})
    assert both.state_dict() == {"a": {"x": 1}, "b": {"x": 2}}
    assert not both.may_be_absent("decoder.layers.0.mlp.objective.b.gate.scale")
    assert second.kept["name"] == "decoder.layers.0.mlp.objective.gate.scale"
    assert "name" not in first.kept
    assert not both.may_be_absent("objective.a.scale")
    assert first.kept["name"] == "objective.scale"
    prepared = both.prepare([SimpleNamespace()] * 2, step=SimpleNamespace())  # type: ignore[list-item, arg-type]
    assert prepared == [{"a": None, "b": None}] * 2


def test_one_companion_alone_runs_beside() -> None:
    teacher = SimpleNamespace()
    assert Sum(a=Keeps(teacher), b=Keeps()).companion() is teacher
    with pytest.raises(ConfigError, match="objectives a, b of a sum each have a companion"):
        Sum(a=Keeps(teacher), b=Keeps(teacher)).companion()
    with pytest.raises(ConfigError, match="at least one"):
        Sum()


class Misnamed(Objective):
    scalar_names = ("KL", "kl", "kl")


def test_names_of_scalars_are_checked() -> None:
    with pytest.raises(ConfigError) as refused:
        make_objective(PluginSpec(name=f"{__name__}:Misnamed"))
    first, second = refused.value.problems
    assert "'KL' is not a valid name of a scalar" in first
    assert "names a scalar twice: KL, kl, kl" in second


# ---- what is reported -----------------------------------------------------------------------------------------------


def test_metrics_show_both_losses_and_the_scalars(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    take_step(state, loss=5.0)
    plain = step_metrics(state, read_memory=lambda: 1)
    assert state.step is not None
    state.step = dataclasses.replace(state.step, objective_loss=6.5, scalars={"gates/open": 0.5})
    both = step_metrics(state, read_memory=lambda: 1)
    assert both == plain | {"train/objective_loss": 6.5, "objective/gates/open": 0.5}
    assert both["train/loss"] == 5.0
    assert state.step.is_finite
    assert not dataclasses.replace(state.step, objective_loss=float("nan")).is_finite
    assert not dataclasses.replace(state.step, loss=float("inf")).is_finite
