"""A run that was saved, and loaded into a fresh engine of any layout, goes on as if it had never stopped."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch

from chinchilla_ds.checkpoint.folder import list_checkpoints
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.errors import CheckpointError, OutputError
from chinchilla_ds.run_plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

SAME_LAYOUT = {
    "zero0-dp2": (Case(zero=0, dp=2), Precision.FP32),
    "zero0-bf16": (Case(zero=0, dp=2), Precision.BF16),
    "zero1-dp2": (Case(zero=1, dp=2), Precision.FP32),
    "zero1-tp2-pp2": (Case(zero=1, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero1-dp2-bf16": (Case(zero=1, dp=2), Precision.BF16),
    "zero2-pp2-dp2-bf16": (Case(zero=2, pp=2, dp=2, accumulation=4), Precision.BF16),
    "zero2-dp2-offload": (Case(zero=2, dp=2, offload="optimizer"), Precision.FP32),
    "zero3-tp2-pp2": (Case(zero=3, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero3-pp2-vpp2": (Case(zero=3, pp=2, virtual=2, accumulation=4), Precision.FP32),
    "zero3-dp2-bf16": (Case(zero=3, dp=2), Precision.BF16),
    "zero3-dp2-offload": (Case(zero=3, dp=2, offload="all"), Precision.FP32),
}
IN_EVERY_RUN = {
    ("zero0-dp2", False),
    ("zero1-tp2-pp2", True),
    ("zero1-dp2-bf16", False),
    ("zero3-pp2-vpp2", False),
    ("zero3-dp2-bf16", True),
}
"""The others, at once and in the background, are slow."""
SAVED_AT = 2


def state_at(iteration, **more):
    return CheckpointState(
        iteration=iteration,
        data_step=iteration,
        attempts=iteration,
        optimizer_step=-1,
        elapsed_s=1.5,
        world_size=-1,
        **more,
    )


def train_steps(engine, steps):
    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in steps
    ]
    return [(result.loss, result.grad_norm) for result in results]


def held_out_loss(engine):
    return engine.evaluate(harness.own_micro_batches(engine.plan, harness.HELD_OUT_STEP))


def save_in(engine, folder, *, iteration=SAVED_AT, in_background=False):
    saver = checkpoint.Checkpointer(engine, folder=folder, ds_config={})
    path = saver.save(state_at(iteration), in_background=in_background)
    return saver, path


def train_and_save(engine, folder, in_background=False):
    """A body for `on_engine`: saves on the way; returns what it had then, and what came after."""
    train_steps(engine, range(SAVED_AT))
    saver, _ = save_in(engine, folder, in_background=in_background)
    saved = held_out_loss(engine)
    steps = train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))
    saver.wait()
    return saved, steps, harness.shards_of(engine.stage)


def load_and_train(engine, folder):
    """A body for `on_engine`: as `train_and_save`, and the loss before loading in front."""
    fresh = held_out_loss(engine)
    before = {path.name for path in folder.iterdir()}
    checkpoint.Checkpointer(engine, folder=folder, ds_config={}).rehearse(state_at(0))
    assert {path.name for path in folder.iterdir()} == before, "the rehearsal leaves nothing behind"
    path = checkpoint.newest_whole(folder, warn=lambda problem: pytest.fail(problem))
    state = checkpoint.load(engine, checkpoint=path)
    assert state.iteration == state.optimizer_step == SAVED_AT
    loaded = held_out_loss(engine)
    steps = train_steps(engine, range(state.iteration, engine.plan.batch.train_iters))
    return fresh, loaded, steps, harness.shards_of(engine.stage)


@pytest.mark.parametrize(
    ("name", "in_background"),
    [
        pytest.param(name, background, marks=[] if (name, background) in IN_EVERY_RUN else [pytest.mark.slow])
        for name, background in itertools.product(SAME_LAYOUT, (False, True))
    ],
)
def test_loaded_run_goes_on_bit_by_bit(name, in_background, tmp_path):
    case, precision = SAME_LAYOUT[name]
    plan = case.plan(precision=precision)
    uninterrupted = harness.on_engine(plan, train_and_save, tmp_path, in_background)
    resumed = harness.on_engine(plan, load_and_train, tmp_path)
    for (saved, wanted_steps, wanted), (fresh, loaded, steps, shards) in zip(uninterrupted, resumed, strict=True):
        assert loaded == saved
        assert steps == wanted_steps
        assert shards.keys() == wanted.keys()
        assert all(torch.equal(shards[name].value, shard.value) for name, shard in wanted.items())
        assert abs(fresh - saved) > 1e-3 * saved, "control: what was loaded does not show"


def test_control_weights_without_moments_do_not_go_on_in_the_same_way(tmp_path):
    def load_weights_alone(engine, folder):
        checkpoint.load(engine, checkpoint=folder / "step_0000002", weights_only=True)
        return train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))

    plan = Case(zero=1).plan()
    [(_, wanted, _)] = harness.on_engine(plan, train_and_save, tmp_path)
    [steps] = harness.on_engine(plan, load_weights_alone, tmp_path)
    assert steps[0] == wanted[0], "the first gradient knows the weights alone"
    assert harness.largest_relative([norm for _, norm in steps], [norm for _, norm in wanted]) > 1e-3


# ---- another layout --------------------------------------------------------------------------------------------------

GLOBAL_PARTS = 4
"""Micro-batches of a step over all data-parallel ranks: the same text in every layout."""


def layout(**sizes):
    return Case(accumulation=GLOBAL_PARTS // sizes.get("dp", 1), **sizes)


LAYOUTS = {
    "zero0": layout(zero=0),
    "zero0-dp2": layout(zero=0, dp=2),
    "zero0-tp2": layout(zero=0, tp=2),
    "zero1-dp4": layout(zero=1, dp=4),
    "zero1-pp2-dp2": layout(zero=1, pp=2, dp=2),
    "zero2-dp2-offload": layout(zero=2, dp=2, offload="optimizer"),
    "zero2-tp2-dp2": layout(zero=2, tp=2, dp=2),
    "zero3-dp2": layout(zero=3, dp=2),
    "zero3-tp2-pp2": layout(zero=3, tp=2, pp=2),
    "zero3-pp2-vpp2": layout(zero=3, pp=2, virtual=2),
    "zero3-dp4-offload": layout(zero=3, dp=4, offload="all"),
    "zero1-tp2-pp2-sp": layout(zero=1, tp=2, pp=2, sequence_parallel=True),
}
PAIRS = list(itertools.permutations(LAYOUTS, 2))
QUICK = [("zero0", "zero3-tp2-pp2"), ("zero2-tp2-dp2", "zero3-pp2-vpp2")]
"""All pairs are slow."""


def continue_in(tmp_path, source, target, **shape):
    """Train in one layout, go on in another; return losses and norms, uninterrupted in the first and resumed."""
    plan = source.plan(**shape)
    [(_, wanted, _), *_] = harness.on_engine(plan, train_and_save, tmp_path)
    [(fresh, _, steps, _), *_] = harness.on_engine(target.plan(**shape), load_and_train, tmp_path)
    assert abs(fresh - wanted[0][0]) > 1e-3, "control: what was loaded does not show"
    return list(itertools.chain(*wanted)), list(itertools.chain(*steps))


@pytest.mark.parametrize(("source", "target"), QUICK)
def test_another_layout_goes_on_as_the_first(source, target, tmp_path):
    wanted, steps = continue_in(tmp_path, LAYOUTS[source], LAYOUTS[target])
    assert harness.largest_relative(steps, wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_layout_goes_on_from_every_other(source, tmp_path):
    [(_, wanted, _), *_] = harness.on_engine(LAYOUTS[source].plan(), train_and_save, tmp_path)
    apart = {}
    for target in LAYOUTS:
        [(_, _, steps, _), *_] = harness.on_engine(LAYOUTS[target].plan(), load_and_train, tmp_path)
        apart[target] = harness.largest_relative(list(itertools.chain(*steps)), list(itertools.chain(*wanted)))
    print(source, {target: f"{value:.1e}" for target, value in apart.items()})
    assert max(apart.values()) < 1e-5, apart


@pytest.mark.parametrize(
    ("source", "target"),
    [("zero3-dp2", "zero0-tp2"), pytest.param("zero0-tp2", "zero2-dp2-offload", marks=pytest.mark.slow)],
)
def test_tied_embeddings_move_too(source, target, tmp_path):
    wanted, steps = continue_in(tmp_path, LAYOUTS[source], LAYOUTS[target], tied_embeddings=True)
    assert harness.largest_relative(steps, wanted) < 1e-5


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("zero0-tp2", "zero3-tp2-pp2"),
        pytest.param("zero3-tp2-pp2", "zero1-pp2-dp2", marks=pytest.mark.slow),
        pytest.param("zero1-tp2-pp2-sp", "zero0", marks=pytest.mark.slow),
    ],
)
def test_norms_of_heads_move_too(source, target, tmp_path):
    wanted, steps = continue_in(tmp_path, LAYOUTS[source], LAYOUTS[target], qk_norm=True)
    assert harness.largest_relative(steps, wanted) < 1e-5


SIX_OVER_FOUR = {
    "zero1-pp4": (layout(zero=1, pp=4), layout(zero=1, pp=2, dp=2)),
    "zero3-pp4": (layout(zero=3, pp=4), layout(zero=0)),
    "zero1-pp4-tp2": (layout(zero=1, tp=2, pp=4), layout(zero=3, tp=2, pp=2)),
    "zero3-pp2-vpp3-to-zero1-pp4": (layout(zero=3, pp=2, virtual=3), layout(zero=1, pp=4)),
}


@pytest.mark.parametrize(
    "name", [name if name == "zero1-pp4" else pytest.param(name, marks=pytest.mark.slow) for name in SIX_OVER_FOUR]
)
def test_uneven_stages_go_on_in_even_ones(name, tmp_path):
    """Six layers on four stages: 1, 2, 2, 1; loaded where they are 3 and 3, or all together."""
    source, target = SIX_OVER_FOUR[name]
    wanted, steps = continue_in(tmp_path, source, target, num_layers=6)
    assert harness.largest_relative(steps, wanted) < 1e-5


def test_a_checkpoint_tells_whole_weights_whatever_wrote_it(tmp_path):
    def save_fresh(engine, folder):
        save_in(engine, folder, iteration=0)

    plan = LAYOUTS["zero3-tp2-pp2"].plan()
    harness.on_engine(plan, save_fresh, tmp_path)
    reader = CheckpointReader.open(tmp_path)
    wanted = harness.initial_weights(plan)
    assert set(reader.names()) == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(reader.read(name), value)
        assert reader.shape(name) == tuple(value.shape)
        assert not reader.read(name, state="exp_avg").any()
        assert torch.equal(reader.read_rows(name, rows=slice(1, 3)), value[1:3])


# ---- the rehearsal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zero", "precision"), [(0, Precision.FP32), (0, Precision.BF16), (3, Precision.FP32)])
def test_a_rehearsal_leaves_the_run_as_it_was(zero, precision, tmp_path):
    def train(engine, rehearses):
        if rehearses:
            checkpoint.Checkpointer(engine, folder=tmp_path / "checkpoints", ds_config={}).rehearse(state_at(0))
        return train_steps(engine, range(SAVED_AT)), harness.shards_of(engine.stage)

    plan = Case(zero=zero).plan(precision=precision)
    [(steps, shards)], [(wanted_steps, wanted)] = (harness.on_engine(plan, train, flag) for flag in (True, False))
    assert steps == wanted_steps
    assert all(torch.equal(shards[name].value, shard.value) for name, shard in wanted.items())
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_states_that_no_checkpoint_can_hold_are_refused_before_the_first_step(tmp_path):
    """DeepSpeed's master weights in BF16: a save of them ended in a bare AssertionError, after all of the training."""

    def rehearse(engine):
        with pytest.raises(CheckpointError) as error:
            checkpoint.Checkpointer(engine, folder=tmp_path / "checkpoints", ds_config={}).rehearse(state_at(0))
        return error.value.problems

    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    said = harness.on_engine(Case(zero=1, dp=2).plan(precision=Precision.BF16), rehearse, bf16=bf16)
    assert said[0] == said[1]
    assert said[0][0].startswith("the optimizer keeps its master weights in bfloat16, and checkpoints hold FP32")
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_one_rank_does_not_see_is_an_error_on_every_rank(tmp_path):
    def rehearse(engine):
        mine = tmp_path / f"disk-of-rank-{torch.distributed.get_rank()}"
        with pytest.raises(OutputError, match=r"cannot read back .* they must share its folder") as error:
            checkpoint.Checkpointer(engine, folder=mine, ds_config={}).rehearse(state_at(0))
        assert list(mine.iterdir()) == []
        return error.value.problems

    first, second = harness.on_engine(Case(zero=1, dp=2).plan(), rehearse)
    assert first == second
    assert any("__1_0.distcp cannot be read: No such file" in problem for problem in first)


def test_what_is_read_back_must_be_what_was_written(tmp_path):
    def rehearse(engine):
        saver = checkpoint.Checkpointer(engine, folder=tmp_path, ds_config={})
        real = saver._write

        def write_and_spoil(path, **rest):
            real(path, **rest)
            (file,) = (path / "tensors").glob("*.distcp")
            file.write_bytes(file.read_bytes()[::-1])

        saver._write = write_and_spoil
        with pytest.raises(OutputError, match=r"rank 0 .*__0_0\.distcp is damaged"):
            saver.rehearse(state_at(0))
        return True

    assert harness.on_engine(Case(zero=1).plan(), rehearse) == [True]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("padded_vocab_size", 512),
        ("rotary_base", 500000.0),
        ("norm_epsilon", 1e-6),
        ("num_attention_heads", 2),
        ("num_query_groups", 1),
        ("tied_embeddings", True),
    ],
)
def test_another_shape_is_refused(name, value, tmp_path):
    """Most of them fit the sizes of the tensors, with heads as many times wider as there are fewer."""
    plan = Case(zero=1).plan()
    more = {"kv_channels": 32} if name == "num_attention_heads" else {}
    other = dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, **{name: value}, **more))
    weights = [(key, torch.zeros(4)) for key in ("a.weight", "b.weight")]
    written = write_checkpoint(tmp_path / "step_0000002", plan=plan, ds_config={}, weights=weights)

    def load(engine):
        for weights_only in (True, False):
            with pytest.raises(CheckpointError) as error:
                checkpoint.load(engine, checkpoint=written, weights_only=weights_only)
            assert f"shape.{name} is {getattr(plan.shape, name)} in the checkpoint {written}" in str(error.value)
            assert f"and {value} in the plan" in str(error.value)
            assert f"`plan={written / 'plan.json'}`" in str(error.value)
        return True

    assert harness.on_engine(other, load) == [True]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    def load(engine):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoint.newest_whole(tmp_path, warn=print)
        return True

    assert harness.on_engine(Case(zero=1, dp=2).plan(), load) == [True, True]


def test_a_folder_that_cannot_be_made_is_an_error_on_every_rank(tmp_path):
    (tmp_path / "file").write_text("")

    def save(engine):
        with pytest.raises(OutputError, match="cannot write the checkpoint"):
            save_in(engine, tmp_path / "file" / "checkpoints")
        with pytest.raises(OutputError, match="cannot write the checkpoint"):
            checkpoint.Checkpointer(engine, folder=tmp_path / "file" / "checkpoints", ds_config={}).rehearse(
                state_at(0)
            )
        return True

    assert harness.on_engine(Case(zero=1, dp=2).plan(), save) == [True, True]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path):
    def save_three(engine, folder):
        for iteration in (1, 2, 3):
            save_in(engine, folder, iteration=iteration)

    def load(engine, folder):
        said = []
        path = checkpoint.newest_whole(folder, warn=said.append)
        return path.name, said

    plan = Case(zero=3, dp=2).plan()
    harness.on_engine(plan, save_three, tmp_path)
    newest, middle, oldest = list_checkpoints(tmp_path)
    path = newest / "tensors" / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (middle / "state.json").write_text("{}")
    (first, said), (second, quiet) = harness.on_engine(plan, load, tmp_path)
    assert first == second == oldest.name
    assert quiet == []
    assert f"{path} is damaged" in said[0]
    assert f"{middle / 'state.json'} has 2 bytes" in said[1]
    assert said[2] == f"resuming from {oldest}, the newest that is intact"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_damage_of_every_file_is_found_by_every_rank(tmp_path):
    """One bit flipped, the last byte cut off, the file gone: of each file that a checkpoint has."""

    def save_two(engine, folder):
        for iteration in (1, 2):
            save_in(engine, folder, iteration=iteration)

    def load(engine):
        taken = {}
        for place in places:
            said = []
            taken[place] = checkpoint.newest_whole(place, warn=said.append).name, said
        return taken

    plan = Case(zero=1, dp=2).plan()
    harness.on_engine(plan, save_two, tmp_path / "whole")
    newest, oldest = list_checkpoints(tmp_path / "whole")
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) == 7, files
    places, harmed = [tmp_path / "whole"], {}
    for file, damage in itertools.product(files, (flip, cut, Path.unlink)):
        place = tmp_path / f"{file.name}-{damage.__name__}"
        shutil.copytree(tmp_path / "whole", place)
        harmed[place] = place / newest.name / file
        damage(harmed[place])
        places.append(place)
    first, second = harness.on_engine(plan, load)
    for place, path in harmed.items():
        assert (first[place][0], second[place][0]) == (oldest.name, oldest.name), path
        assert any(file in line for line in first[place][1] for file in (str(path), path.name)), (path, first[place][1])
    assert first[tmp_path / "whole"] == (newest.name, []), "control"
