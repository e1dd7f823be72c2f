"""`--init-from` is checked before anything slow: there is a checkpoint, and it computes the plan's function."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.cli import pretrain
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.run_plan import FUNCTION_FIELDS, ModelShape
from chinchilla_ds.runs.initial_weights import check_initial_tokenizer, check_initial_weights
from chinchilla_ds.testing import tiny_plan
from tests.unit.cli.earlier_runs import save

PLAN = tiny_plan(train_iters=9)
OTHERS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 128,
    "ffn_hidden_size": 64,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 8,
    "padded_vocab_size": 384,
    "tied_embeddings": True,
    "qk_norm": True,
    "rotary_base": 500000.0,
    "norm_epsilon": 1e-6,
}
FREE = {"vocab_size": 200, "seq_length": 16, "init_std": 0.5}


def test_every_field_of_a_shape_decides_what_weights_compute_or_is_known_not_to() -> None:
    assert OTHERS.keys() == set(FUNCTION_FIELDS)
    assert OTHERS.keys() | FREE.keys() == {field.name for field in dataclasses.fields(ModelShape)}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_another_function_are_refused_with_both_values(name: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "run", 4, plan=PLAN)
    shape = dataclasses.replace(PLAN.shape, **{name: OTHERS[name]})
    wanted: Any = SimpleNamespace(shape=shape)
    with pytest.raises(CheckpointError) as error:
        check_initial_weights(tmp_path / "run", plan=wanted)
    assert error.value.problems == (
        f"`checkpoint.init_from={tmp_path / 'run'}`: shape.{name} is {getattr(PLAN.shape, name)} in the checkpoint "
        f"{checkpoint} and {OTHERS[name]} in the plan; its weights belong to its own shape: give a plan of that shape, "
        f"such as `plan={checkpoint / 'plan.json'}`",
    )


def test_what_is_free_is_free(tmp_path: Path) -> None:
    save(tmp_path, 4, plan=PLAN)
    wanted: Any = SimpleNamespace(shape=dataclasses.replace(PLAN.shape, **FREE))
    check_initial_weights(tmp_path, plan=wanted)


def lose(path: Path) -> None:
    shutil.rmtree(path.parents[2])


def cut(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(lose, "does not exist"), (cut, "has 1 bytes and the manifest says"), (Path.unlink, "cannot be")],
)
def test_a_checkpoint_that_cannot_be_read_is_named(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    damage(save(tmp_path / "run", 4) / "plan.json")
    with pytest.raises(CheckpointError, match=f"`checkpoint.init_from={tmp_path / 'run'}`: .*{said}"):
        check_initial_weights(tmp_path / "run", plan=PLAN)


def test_another_tokenizer_is_refused_when_the_text_has_been_prepared(tmp_path: Path) -> None:
    save(tmp_path, 4, tokenizer_sha256="theirs")
    ours: Any = SimpleNamespace(tokenizer_sha256="ours", folder=tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"was trained with tokenizer theirs, and .* was made with ours"):
        check_initial_tokenizer(tmp_path, prepared=ours)


def test_the_command_refuses_before_torch_is_imported(
    rank_zero_of: Callable[[int], None],
    ds_configs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("chinchilla_ds.runs.train.use_cores", lambda _: pytest.fail("went on"))
    flags = ("--flops", "7e9", "--seq-length", "64", "--global-batch-size", "4", "--vocab-size", "512")
    config = RunConfig(compute_budget_flops=7e9, seq_length=64, global_batch_size=4, vocab_size=512)
    plan = make_plan(config, world_size=1, device="cpu")
    other = dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, rotary_base=500000.0))
    save(tmp_path / "weights", 0, plan=other)
    words = ["--ds_config", str(ds_configs / "zero1.json"), *flags, "--output", str(tmp_path / "runs")]
    assert pretrain.main([*words, "--init-from", str(tmp_path / "weights")]) == 2
    said = capsys.readouterr().err
    assert "shape.rotary_base is 500000.0 in the checkpoint" in said
    assert "10000.0 in the plan" in said
    assert not (tmp_path / "runs").exists()
