"""`import chinchilla_ds`: light, complete, not hidden by any submodule, and whole without the command line."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chinchilla_ds
from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.runs.command import checked_config, set_fields
from tests.unit.library import without_cli

NAMES = (
    *("RunConfig", "plan", "fit", "prepare", "train", "initialize", "load", "generate", "evaluate", "export"),
    *("Callback", "Objective"),
)


def test_the_import_is_light() -> None:
    script = (
        "import sys, chinchilla_ds; light = set(sys.modules); chinchilla_ds.plan(chinchilla_ds.RunConfig());"
        "chinchilla_ds.Callback; chinchilla_ds.train; heavy = {'torch', 'deepspeed', 'megatron', 'mlflow'};"
        "print(light & (heavy | {'numpy', 'pydantic'}), heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() set()"


def test_no_submodule_hides_a_name() -> None:
    without_cli.import_everything()
    assert tuple(chinchilla_ds.__all__) == NAMES
    for name in NAMES:
        value = getattr(chinchilla_ds, name)
        assert inspect.isclass(value) or inspect.isfunction(value), f"{name} is a {type(value).__name__}"
        assert value.__name__ == name
    assert set(NAMES) <= set(dir(chinchilla_ds))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        getattr(chinchilla_ds, "trian")  # noqa: B009


def test_every_name_has_a_signature_of_its_own() -> None:
    for name in NAMES:
        if inspect.isfunction(function := getattr(chinchilla_ds, name)):
            parameters = inspect.signature(function).parameters.values()
            assert len([one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]) <= 2, name
            assert not any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters), name


def test_a_plan_of_a_device_is_searched_and_one_without_is_taken() -> None:
    config = RunConfig(compute_budget_flops=1e21)
    assert chinchilla_ds.plan(config, gpu="h100", gpus=64).cluster is not None
    given = chinchilla_ds.plan(config, device="cpu")
    assert (given.cluster, given.layout.world_size, given.device) == (None, 1, "cpu")
    with pytest.raises(ConfigError, match="have no effect without gpu"):
        chinchilla_ds.plan(gpu_hours=5)
    with pytest.raises(ConfigError, match="are both budgets"):
        chinchilla_ds.plan(config, gpu="h100", gpu_hours=5)


def test_an_objective_beside_another_in_the_config_is_refused() -> None:
    config = RunConfig(objective=PluginSpec(name="mine:Loss"))
    with pytest.raises(ConfigError, match="`objective` is mine:Loss in the config and cross_entropy as an argument"):
        chinchilla_ds.train(config, ds_config={}, objective=chinchilla_ds.Objective())


@pytest.mark.slow
def test_training_needs_no_command_line(tmp_path: Path) -> None:
    """Everything but `cli` is imported, and `train` trains; the second call finds the finished run."""
    root = Path(chinchilla_ds.__file__).parents[1]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": str(root)}
    command = [sys.executable, without_cli.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["modules"] > 250
    assert facts["iteration"] == 4
    assert facts["callables"] == list(NAMES)
    first, second = facts["folders"]
    assert first == second
    assert facts["losses"][0] == pytest.approx(facts["losses"][1], rel=1e-12)
    name, loss, optimised = facts["weighted"]
    assert name == "__main__:Weighted"
    assert optimised == pytest.approx(0.25 * loss, rel=1e-6), "the loss of the script's own is optimised"
    status = json.loads((Path(first) / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(compute_budget_flops="1e10"), "config.compute_budget_flops is '1e10'; it must be a number"),  # type: ignore[arg-type]
        (RunConfig(seed=-1), "config.seed is -1; it must be at least 0"),
        (RunConfig(compute_budget_flops=float("nan")), "not a finite number"),
        ({"seed": 1}, "the config is a dict; it must be a RunConfig"),
    ],
)
def test_a_config_that_code_has_made_is_checked_like_one_of_a_file(config: RunConfig, message: str) -> None:
    for call in (lambda: chinchilla_ds.plan(config), lambda: chinchilla_ds.train(config, ds_config={})):
        with pytest.raises(ConfigError, match=message):
            call()


def test_paths_may_be_text() -> None:
    config = RunConfig(data=DataConfig(paths=("hf://org/name", "a")), output="out")  # type: ignore[arg-type]
    checked = checked_config(config)
    assert (checked.data.paths, checked.output) == ((Path("hf://org/name"), Path("a")), Path("out"))
    assert set_fields(checked) == {"paths", "output"}
    assert checked_config(None) == RunConfig()
