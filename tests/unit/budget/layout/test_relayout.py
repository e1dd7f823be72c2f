"""A plan on other ranks keeps what is learned: shape, schedule and global batch; the share of a rank follows."""

import dataclasses
import itertools

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import apply_to_config, resolve, shipped_configs
from chinchilla_ds.budget.layout.relayout import is_laid_out, lay_out, lay_out_again
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.exporting.imported_plan import plan_of
from chinchilla_ds.run_plan import Cluster, Precision, RunPlan
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape

MAY_CHANGE = {"layout", "batch", "device", "cluster", "memory_bytes", "step_time", "reasons"}


def old_plan(*, global_batch_size: int = 24) -> RunPlan:
    return tiny_plan(micro_batch_size=global_batch_size, train_iters=7)


def made_for(*, ranks: int, micro_batch_size: int = 4, **layout: int) -> RunPlan:
    """A plan of another run, whose batch and learning rate must not leak into the old one's."""
    zero = 1 if ranks > 1 else 0
    return tiny_plan(
        data_parallel_size=ranks, micro_batch_size=micro_batch_size, zero_stage=zero, learning_rate=0.5, **layout
    )


def test_nothing_changes_for_the_same_layout() -> None:
    old = old_plan()
    assert lay_out_again(old, like=old) is old
    other_cluster = Cluster(device="h100", world_size=1, devices_per_node=8, device_memory_bytes=1)
    assert lay_out_again(old, like=dataclasses.replace(old, seed=9, cluster=other_cluster)) is old


def test_the_micro_batch_stays_with_its_layout_unless_another_is_asked_for() -> None:
    old, like = old_plan(), made_for(ranks=1, micro_batch_size=1)
    assert old.layout == like.layout
    assert lay_out_again(old, like=like, micro_batch_is_asked=False) is old
    assert lay_out_again(old, like=like).batch.micro_batch_size == 1
    elsewhere = made_for(ranks=2, micro_batch_size=1)
    assert lay_out_again(old, like=elsewhere, micro_batch_is_asked=False).batch.micro_batch_size == 1


@pytest.mark.parametrize(
    ("ranks", "most", "micro_batch_size", "accumulation"),
    [(1, 24, 24, 1), (1, 5, 4, 6), (2, 4, 4, 3), (3, 3, 2, 4), (4, 4, 3, 2), (8, 64, 3, 1), (24, 1, 1, 1)],
)
def test_the_global_batch_stays(ranks: int, most: int, micro_batch_size: int, accumulation: int) -> None:
    new = lay_out_again(old_plan(), like=made_for(ranks=ranks, micro_batch_size=most))
    batch = new.batch
    assert batch.global_batch_size == 24
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps) == (micro_batch_size, accumulation)


def test_for_many_sizes_every_rank_has_the_same_whole_share() -> None:
    taken = refused = 0
    for global_batch_size, ranks, most in itertools.product(range(1, 49), range(1, 13), (1, 3, 4, 8)):
        old, like = old_plan(global_batch_size=global_batch_size), made_for(ranks=ranks, micro_batch_size=most)
        if global_batch_size % ranks:
            with pytest.raises(LayoutError):
                lay_out_again(old, like=like)
            refused += 1
            continue
        new = lay_out_again(old, like=like)
        batch = new.batch
        assert batch.micro_batch_size * batch.gradient_accumulation_steps * ranks == global_batch_size
        assert batch.micro_batch_size <= most
        larger = range(batch.micro_batch_size + 1, most + 1)
        assert all(batch.gradient_accumulation_steps * batch.micro_batch_size % size for size in larger)
        assert new.layout == like.layout
        kept = {field.name for field in dataclasses.fields(RunPlan)} - MAY_CHANGE
        assert all(getattr(new, name) == getattr(old, name) for name in kept)
        assert (batch.train_iters, new.tokens_per_iter) == (old.batch.train_iters, old.tokens_per_iter)
        taken += 1
    assert min(taken, refused) > 100


def test_a_batch_that_cannot_be_shared_names_the_nearest_sizes_that_can() -> None:
    with pytest.raises(LayoutError) as error:
        lay_out_again(old_plan(), like=made_for(ranks=5))
    assert str(error.value) == (
        "the run has a global batch of 24 sequences, which 5 data-parallel ranks cannot share; 4 or 6 can: start "
        "4 or 6 ranks"
    )


def test_ranks_are_counted_with_those_that_share_the_model() -> None:
    like = made_for(ranks=5, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    with pytest.raises(LayoutError, match="4 or 6 can: start 16 or 24 ranks"):
        lay_out_again(old_plan(), like=like)


def test_interleaved_stages_get_whole_rounds_of_micro_batches() -> None:
    stages = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    new = lay_out_again(old_plan(), like=made_for(ranks=3, micro_batch_size=8, **stages))
    assert (new.batch.micro_batch_size, new.batch.gradient_accumulation_steps) == (4, 2)
    with pytest.raises(LayoutError, match="must be a multiple of"):
        lay_out_again(old_plan(), like=made_for(ranks=8, **stages))  # 3 sequences each


def test_a_layout_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(LayoutError, match="must divide"):
        lay_out_again(old_plan(), like=made_for(ranks=1, tensor_model_parallel_size=3))


def test_the_plan_says_what_was_done_and_takes_the_estimates_of_the_new_place() -> None:
    old = old_plan()
    like = dataclasses.replace(made_for(ranks=2), device="cuda")
    new = lay_out_again(old, like=like)
    assert new.device == "cuda"
    assert new.reasons[:-1] == old.reasons
    assert new.reasons[-1] == (
        "Continued on 2 ranks after 1: the global batch of 24 sequences stays, in micro-batches of 4."
    )
    back = lay_out_again(new, like=old)
    assert (back.layout, back.batch) == (old.layout, old.batch)


# ---- a plan that was made for no machine -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ranks", [4, 64])
@pytest.mark.parametrize("name", shipped_configs())
def test_a_plan_of_imported_weights_trains_with_every_shipped_file(name: str, ranks: int, device: str) -> None:
    imported = RunPlan.from_json(plan_of(tiny_shape()).to_json())
    assert not is_laid_out(imported)
    ds = shipped_configs()[name]
    config = apply_to_config(RunConfig(), ds)
    plan = lay_out(imported, config=config, world_size=ranks, device=device)
    resolved = resolve(ds, plan)
    assert is_laid_out(plan)
    assert resolved["zero_optimization"]["stage"] == plan.layout.zero_stage == ds["zero_optimization"]["stage"]
    assert plan.layout.world_size == ranks
    assert plan.precision is (Precision.BF16 if device == "cuda" else Precision.FP32)
    batch = plan.batch
    shared = batch.micro_batch_size * batch.gradient_accumulation_steps * plan.layout.data_parallel_size
    assert batch.global_batch_size == imported.batch.global_batch_size == shared
    for name in {*vars(imported)} - MAY_CHANGE - {"precision"}:
        assert getattr(plan, name) == getattr(imported, name), name


def test_a_plan_of_imported_weights_says_how_many_ranks_can_share_its_batch() -> None:
    config = apply_to_config(RunConfig(), shipped_configs()["zero3"])
    with pytest.raises(LayoutError, match="which 3 data-parallel ranks cannot share; 2 or 4 can: start 2 or 4 ranks"):
        lay_out(plan_of(tiny_shape()), config=config, world_size=3, device="cpu")


def test_a_plan_that_was_made_for_ranks_is_laid_out() -> None:
    assert is_laid_out(make_plan(RunConfig(), world_size=2, device="cpu"))
