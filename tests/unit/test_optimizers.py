"""The optimizer and its settings from flags and ds_config to the plan; one from outside, that of the docs."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import apply_to_config, load_ds_config, resolve
from chinchilla_ds.budget.layout.search import search_layouts
from chinchilla_ds.budget.layout.space import LayoutRequest
from chinchilla_ds.budget.memory.states import state_bytes
from chinchilla_ds.budget.planner import plan
from chinchilla_ds.budget.report import format_plan
from chinchilla_ds.budget.speed.devices import get_device
from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import ChinchillaError, ConfigError, DsConfigError, LayoutError
from chinchilla_ds.optimizers import adamw, checkpoint_bytes, find_optimizer, optimizer_of, state_bytes_per_param
from chinchilla_ds.plugins import parse_spec
from chinchilla_ds.run_plan import ADAM_STATES, Offload, Precision, RunPlan
from chinchilla_ds.testing.configs import tiny_shape
from tests.documented import code_blocks

ROOT = Path(__file__).parents[2]
SGD = parse_spec("my_sgd:sgd,momentum=0.95")


@pytest.fixture(autouse=True)
def module_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = code_blocks("add-an-optimizer.md")
    (tmp_path / "my_sgd.py").write_text(text + "\n\ndef no_spec():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_sgd", None)


def made(**config: Any) -> RunPlan:
    return plan(RunConfig(**config), world_size=1, device="cpu")


def problems(**config: Any) -> str:
    with pytest.raises(ChinchillaError) as error:
        made(**config)
    return "\n".join(error.value.problems)


# ---- AdamW's settings ------------------------------------------------------------------------------------------------


def test_what_is_not_asked_for_is_as_ever() -> None:
    chosen = made()
    optimizer = chosen.optimizer
    assert (optimizer.weight_decay, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.1, 0.9, 0.95, 1e-8)
    assert (str(optimizer.plugin), optimizer.states, chosen.schedule.warmup_iters) == ("adamw", ADAM_STATES, 49)
    for what in (
        "Weight decay 0.1: that of",
        "Beta1 and beta2 0.9 and 0.95: as in",
        "Epsilon 1e-08: Adam's",
        "Warm-up 49",
    ):
        assert any(reason.startswith(what) for reason in chosen.reasons), what


def test_what_is_asked_for_is_planned_and_its_reason_says_so() -> None:
    asked = {"weight_decay": 0.0, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6}
    chosen = made(**asked, warmup_iters=7)
    assert {name: getattr(chosen.optimizer, name) for name in asked} == asked
    assert (chosen.schedule.warmup_iters, chosen.schedule.decay_iters) == (7, chosen.batch.train_iters - 7)
    for what, usual in (
        ("Weight decay 0", "0.1"),
        ("Beta1 0.8", "0.9"),
        ("Beta2 0.99", "0.95"),
        ("Epsilon 1e-06", "1e-08"),
    ):
        assert f"{what}: asked for (chosen would have been {usual})." in chosen.reasons
    assert "Warm-up 7 steps: asked for (chosen would have been 49)." in chosen.reasons
    assert "weight decay 0, betas 0.8 and 0.99, epsilon 1e-06" in format_plan(chosen)
    assert RunPlan.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"weight_decay": 1.5}, "`weight_decay` (1.5) must be from 0 to 1; nearest: leave it out for the default, 0.1"),
        ({"beta1": 1.0}, "`beta1` (1.0) must be at least 0 and below 1"),
        ({"beta2": float("nan")}, "`beta2` (nan) must be at least 0 and below 1"),
        ({"epsilon": 0.0}, "`epsilon` (0.0) must be above 0 and at most 0.1"),
        ({"warmup_iters": -1}, "`warmup_iters` (-1 steps) must be a whole number"),
        ({"warmup_iters": 497}, "`warmup_iters` (497 steps) must be below the run's 497 optimizer steps; nearest: 496"),
        ({"optimizer": parse_spec("adam")}, "optimizer 'adam' is unknown; did you mean 'adamw'?"),
        ({"optimizer": "adamw"}, "`optimizer` is 'adamw'; it must be a PluginSpec"),
        ({"optimizer": parse_spec("adamw,momentum=0.9")}, "unexpected keyword argument 'momentum'"),
        ({"optimizer": parse_spec("my_sgd:no_spec")}, "returned a value of type int; it must return an OptimizerSpec"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], said: str) -> None:
    assert said in problems(**config)


def test_flags_set_them() -> None:
    words = "--ds_config x.json --optimizer my_sgd:sgd,momentum=0.95 --weight-decay 0 --beta1 0.5 --beta2 0.9"
    arguments = parse([*words.split(), "--epsilon", "1e-7", "--warmup-iters", "0"])
    wanted = {"optimizer": SGD, "weight_decay": 0.0, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-7, "warmup_iters": 0}
    assert {name: getattr(arguments.config, name) for name in wanted} == wanted
    assert arguments.explicit == wanted.keys()
    with pytest.raises(ConfigError, match="--optimizer: 'momentum' after 'adamw' is not key=value"):
        parse(["--ds_config", "x.json", "--optimizer", "adamw,momentum"])


def test_an_old_plan_is_one_of_adamw() -> None:
    chosen = made()
    data = json.loads(chosen.to_json())
    del data["optimizer"]["plugin"], data["optimizer"]["states"]
    assert RunPlan.from_json(json.dumps(data)) == chosen


@pytest.mark.parametrize("states", [["Exp"], ["weight"], ["a/b"], ["a", "a"], [""]])
def test_states_that_no_checkpoint_could_hold_are_refused(states: list[str]) -> None:
    data = json.loads(made().to_json())
    data["optimizer"]["states"] = states
    with pytest.raises(ConfigError, match=r"optimizer\.states has"):
        RunPlan.from_json(json.dumps(data))


# ---- the ds_config ---------------------------------------------------------------------------------------------------

PARAMS = {"lr": 1e-3, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.3}
FROM_PARAMS = {"learning_rate": 1e-3, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.3}


@pytest.mark.parametrize("name", ["AdamW", "Adam", "auto"])
def test_the_ds_config_s_settings_are_the_runs(name: str) -> None:
    ds = {"optimizer": {"type": name, "params": PARAMS}}
    config = apply_to_config(RunConfig(), ds)
    assert {name: getattr(config, name) for name in FROM_PARAMS} == FROM_PARAMS
    chosen = plan(config, world_size=1, device="cpu")
    assert resolve(ds, chosen)["optimizer"] == {"type": "AdamW", "params": PARAMS}


def test_a_flag_that_says_otherwise_is_told() -> None:
    config = RunConfig(beta2=0.95, weight_decay=0.3)
    with pytest.raises(DsConfigError) as error:
        apply_to_config(config, {"optimizer": {"params": PARAMS}}, explicit=frozenset({"beta2", "weight_decay"}))
    [problem] = error.value.problems
    assert problem.startswith("`beta2` is 0.95, but the ds_config's optimizer.params.betas means 0.99; drop that")


def test_a_plan_that_says_otherwise_is_told() -> None:
    with pytest.raises(DsConfigError) as error:
        resolve({"optimizer": {"params": PARAMS}}, made())
    told = "\n".join(error.value.problems)
    for fix in ("`learning_rate=0.001`", "`beta1=0.8` and `beta2=0.99`", "`epsilon=1e-06`", "`weight_decay=0.3`"):
        assert f"or pass {fix}" in told


def test_settings_out_of_range_are_refused_as_those_of_flags() -> None:
    config = apply_to_config(RunConfig(), {"optimizer": {"params": {"betas": [0.9, 1.5], "weight_decay": 3}}})
    with pytest.raises(ConfigError) as error:
        plan(config, world_size=1, device="cpu")
    assert [problem.split(" ")[0] for problem in error.value.problems] == ["`weight_decay`", "`beta2`"]


# ---- an optimizer from outside ---------------------------------------------------------------------------------------


def test_it_is_planned_with_its_one_state() -> None:
    chosen, usual = made(optimizer=SGD, learning_rate=0.1), made(learning_rate=0.1)
    assert (chosen.optimizer.plugin, chosen.optimizer.states) == (SGD, ("momentum_buffer",))
    assert (state_bytes_per_param(chosen.optimizer), state_bytes_per_param(usual.optimizer)) == (8, 12)
    assert (checkpoint_bytes(chosen), checkpoint_bytes(usual)) == (8 * chosen.num_params, 12 * usual.num_params)
    held, before = (one.memory_bytes for one in (chosen, usual))
    assert held is not None
    assert before is not None
    assert (held.optimizer, before.optimizer) == (4 * chosen.num_params, 8 * chosen.num_params)  # ZeRO-0 in FP32
    assert dataclasses.replace(
        chosen, optimizer=usual.optimizer, memory_bytes=before, reasons=()
    ) == dataclasses.replace(usual, reasons=())
    text = format_plan(chosen)
    assert "SGD with momentum, learning rate 0.1, weight decay 0.1, clipping at 1" in text
    assert "may be no guide to it" in " ".join(text.split())
    assert RunPlan.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize(
    ("zero", "precision"), [(0, Precision.BF16), (1, Precision.FP32), (2, Precision.BF16), (3, Precision.BF16)]
)
def test_memory_by_zero_stage(zero: int, precision: Precision) -> None:
    sizes = {"shape": tiny_shape(), "tensor": 1, "pipeline": 1, "data": 2, "zero_stage": zero, "stage": 0}
    one, two = (
        state_bytes(
            **sizes,
            offload_optimizer=Offload.NONE,
            offload_param=Offload.NONE,
            precision=precision,
            optimizer_states=states,
        )
        for states in (1, 2)
    )
    assert two.optimizer == pytest.approx(one.optimizer * 12 / 8)
    assert two._replace(optimizer=one.optimizer) == one


def test_offload_is_refused_where_it_cannot_step() -> None:
    layout = LayoutConfig(zero_stage=3, offload_optimizer=Offload.CPU)
    said = problems(optimizer=SGD, layout=layout)
    assert "offload_optimizer (cpu) cannot be combined with the optimizer SGD with momentum" in said
    assert said.endswith("it runs with offload_optimizer none")
    assert made(layout=layout).layout.offload_optimizer is Offload.CPU, "control"


def test_a_search_offloads_what_can_step_there_alone() -> None:
    request = LayoutRequest(
        shape=tiny_shape(),
        precision=Precision.BF16,
        global_batch_size=16,
        device=get_device("a100"),
        world_size=2,
        fixed={"offload_optimizer": Offload.CPU},
    )
    assert search_layouts(request).best.layout.offload_optimizer is Offload.CPU, "control"
    with pytest.raises(LayoutError, match="the optimizer SGD with momentum"):
        search_layouts(dataclasses.replace(request, optimizer=find_optimizer(SGD)))
    free = search_layouts(dataclasses.replace(request, optimizer=find_optimizer(SGD), fixed={}))
    assert free.best.layout.offload_optimizer is Offload.NONE


@pytest.mark.parametrize("name", ["beta1", "beta2", "epsilon"])
def test_settings_that_it_does_not_read_are_refused(name: str) -> None:
    assert problems(optimizer=SGD, **{name: 0.05}) == (
        f"`{name}` (0.05) has no effect: the optimizer SGD with momentum reads `learning_rate` and `weight_decay`; "
        "leave it out"
    )
    assert made(optimizer=SGD, weight_decay=0.05).optimizer.weight_decay == 0.05


def test_its_ds_config() -> None:
    chosen = made(optimizer=SGD, layout=LayoutConfig(zero_stage=3))
    shipped = load_ds_config(ROOT / "ds_configs/zero3.json")
    assert apply_to_config(RunConfig(optimizer=SGD), shipped).weight_decay is None
    assert "optimizer" not in resolve(shipped, chosen), "DeepSpeed has no name for it"
    named = {**shipped, "optimizer": {"type": "AdamW", "params": {"betas": "auto"}}}
    assert apply_to_config(RunConfig(optimizer=SGD), named).beta1 is None
    with pytest.raises(DsConfigError, match=r'optimizer\.type is "AdamW", but the plan says "SGD with momentum"'):
        resolve(named, chosen)
    betas = {"optimizer": {"params": {"betas": [0.9, 0.95]}}}
    config = apply_to_config(RunConfig(optimizer=SGD), betas)
    with pytest.raises(ConfigError, match=r"`beta1` \(0\.9\) has no effect"):
        plan(config, world_size=1, device="cpu")


def test_a_plan_whose_optimizer_has_changed_is_refused() -> None:
    chosen = made(optimizer=SGD).optimizer
    assert optimizer_of(chosen) == find_optimizer(SGD)
    with pytest.raises(
        ConfigError, match="keeps momentum_buffer for a weight, and kept velocity when the plan was made"
    ):
        optimizer_of(dataclasses.replace(chosen, states=("velocity",)))


def test_an_installed_package_announces_one(tmp_path: Path) -> None:
    (tmp_path / "mine-1.0.dist-info").mkdir()
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n",
        "entry_points.txt": "[chinchilla_ds.optimizers]\nmine = my_sgd:sgd\n",
    }.items():
        (tmp_path / "mine-1.0.dist-info" / name).write_text(text)
    chosen = made(optimizer=parse_spec("mine,momentum=0.5"))
    assert str(chosen.optimizer.plugin) == "mine,momentum=0.5"
    assert optimizer_of(chosen.optimizer).arguments == {"momentum": 0.5}


def test_adamw_names_itself() -> None:
    assert find_optimizer(parse_spec("adamw")) == adamw()
