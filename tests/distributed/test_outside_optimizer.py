"""The optimizer of docs/add-an-optimizer.md, of which no file of the package knows: SGD with one state, momentum."""

import dataclasses
import itertools
import sys

import pytest
import torch

from chinchilla_ds.checkpoint.folder import list_checkpoints
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.objective import is_own
from chinchilla_ds.optimizers import StepCount, WeightGroup, find_optimizer, state_bytes_per_param
from chinchilla_ds.plugins import parse_spec
from chinchilla_ds.run_plan import ADAM_STATES, ADAMW, Precision
from tests.documented import code_blocks
from tests.parity import harness, reference_llama
from tests.parity.layouts import Case

SAVED_AT = 2
MOMENTUM = 0.8
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def module_of_the_docs(tmp_path, monkeypatch):
    [text] = code_blocks("add-an-optimizer.md")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_sgd.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_sgd", None)


def sgd_plan(case, *, momentum=MOMENTUM, **changes):
    plan = case.plan(**{"learning_rate": 0.2, "weight_decay": 0.1, **changes})
    plugin = parse_spec(f"my_sgd:sgd,momentum={momentum}")
    optimizer = dataclasses.replace(plan.optimizer, plugin=plugin, states=("momentum_buffer",))
    return dataclasses.replace(plan, optimizer=optimizer)


class PlainSgd:
    """A second implementation: v = m v + (g + decay w), w = w - rate v."""

    def __init__(self, model, plan):
        weights, decay = list(model.parameters()), plan.optimizer.weight_decay
        self.param_groups = [
            {"params": [w for w in weights if (w.dim() > 1) == decayed], "decay": decay * decayed}
            for decayed in (True, False)
        ]
        self.velocity = {w: torch.zeros_like(w) for w in weights}
        self.momentum = dict(plan.optimizer.plugin.arguments)["momentum"]

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                self.velocity[w] = self.momentum * self.velocity[w] + w.grad + group["decay"] * w
                w -= group["lr"] * self.velocity[w]

    def zero_grad(self, **_):
        for w in self.velocity:
            w.grad = None


@pytest.mark.parametrize(
    "case",
    [
        Case(zero=0),
        Case(zero=1, tp=2),
        pytest.param(Case(zero=0, dp=2), marks=pytest.mark.slow),
        pytest.param(Case(zero=1, pp=2, accumulation=4), marks=pytest.mark.slow),
        pytest.param(Case(zero=2, dp=2), marks=pytest.mark.slow),
        pytest.param(Case(zero=3, dp=2), marks=pytest.mark.slow),
        Case(zero=3, pp=2, accumulation=4),
        pytest.param(Case(zero=3, tp=2, pp=2, accumulation=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_trains_as_a_plain_loop_does(case, monkeypatch):
    monkeypatch.setattr(reference_llama, "make_adamw", PlainSgd)
    plan = sgd_plan(case)
    ours = harness.trained(plan)
    apart = harness.difference(ours, harness.reference(plan), plan)
    assert max(apart.loss, apart.grad_norm, apart.weights) < TOLERANCE
    control = harness.difference(ours, harness.reference(sgd_plan(case, momentum=0.5)), plan)
    assert control.weights > 100 * TOLERANCE, "control: another momentum shows"


def test_weights_that_are_treated_alike_have_groups_of_their_own():
    from chinchilla_ds.engine import optimizer as engine_optimizer

    def sizes(engine):
        groups = engine_optimizer.parameter_groups(engine.stage, spec=spec, weight_decay=0.1)
        with pytest.raises(ConfigError, match=r"takes the weight decoder\.final_layernorm\.weight"):
            engine_optimizer.parameter_groups(engine.stage, spec=tables_alone, weight_decay=0.1)
        return [(group.get("nesterov"), group["weight_decay"], len(group["params"])) for group in groups]

    tables = WeightGroup(takes=lambda name, shape: name.startswith("embedding."), settings={"nesterov": True})
    usual = find_optimizer(parse_spec("my_sgd:sgd"))
    spec = dataclasses.replace(usual, groups=(tables, WeightGroup()))
    tables_alone = dataclasses.replace(usual, groups=(tables, WeightGroup(takes=lambda name, shape: "layers." in name)))
    plan = sgd_plan(Case(zero=0))
    layers = plan.shape.num_layers
    [groups] = harness.on_engine(plan, sizes)
    assert groups == [(True, 0.1, 1), (True, 0.0, 0), (None, 0.1, 4 * layers + 1), (None, 0.0, 2 * layers + 1)]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def state_at(iteration):
    counts = {"iteration": iteration, "data_step": iteration, "attempts": iteration}
    return CheckpointState(**counts, elapsed_s=1.0)


def steps_of(engine, steps):
    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in steps
    ]
    return [(result.loss, result.grad_norm) for result in results]


def train_and_save(engine, folder):
    saver = checkpoint.Checkpointer(engine, folder=folder, ds_config={})
    saver.rehearse(state_at(0))
    steps_of(engine, range(SAVED_AT))
    saver.save(state_at(SAVED_AT))
    return steps_of(engine, range(SAVED_AT, engine.plan.batch.train_iters)), harness.shards_of(engine.stage)


def load_and_train(engine, folder, weights_only=False):
    checkpoint.load(engine, checkpoint=folder / f"step_{SAVED_AT:07d}", weights_only=weights_only)
    return steps_of(engine, range(SAVED_AT, engine.plan.batch.train_iters)), harness.shards_of(engine.stage)


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        (Case(zero=0), Precision.FP32),
        (Case(zero=3, dp=2), Precision.BF16),
        pytest.param(Case(zero=0, dp=2), Precision.BF16, marks=pytest.mark.slow),
        pytest.param(Case(zero=1, tp=2, pp=2, accumulation=4), Precision.FP32, marks=pytest.mark.slow),
        pytest.param(Case(zero=2, dp=2), Precision.FP32, marks=pytest.mark.slow),
        pytest.param(Case(zero=3, tp=2, pp=2, accumulation=4), Precision.FP32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(case, precision, tmp_path):
    plan = sgd_plan(case, precision=precision)
    uninterrupted = harness.on_engine(plan, train_and_save, tmp_path)
    for (wanted_steps, wanted), (steps, shards) in zip(
        uninterrupted, harness.on_engine(plan, load_and_train, tmp_path), strict=True
    ):
        assert steps == wanted_steps
        assert all(torch.equal(shards[name].value, shard.value) for name, shard in wanted.items())
    if precision is Precision.FP32:
        reader = CheckpointReader.open(tmp_path)
        kinds = {key.partition("/")[0] for key in reader.index.tensors}
        assert kinds == {"weight", "momentum_buffer"}
        assert all(reader.read(name, state="momentum_buffer").any() for name in reader.names())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Case(zero=3, tp=2, pp=2, accumulation=4), Case(zero=0, accumulation=4)),
        pytest.param(Case(zero=0, accumulation=4), Case(zero=3, dp=2, accumulation=2), marks=pytest.mark.slow),
        pytest.param(Case(zero=2, dp=2, accumulation=2), Case(zero=1, tp=2, accumulation=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_another_layout_goes_on_as_the_first(source, target, tmp_path):
    [(wanted, _), *_] = harness.on_engine(sgd_plan(source), train_and_save, tmp_path)
    [(steps, _), *_] = harness.on_engine(sgd_plan(target), load_and_train, tmp_path)
    assert apart(steps, wanted) < TOLERANCE
    [(without, _), *_] = harness.on_engine(sgd_plan(target), load_and_train, tmp_path, True)
    assert apart(without, wanted) > 100 * TOLERANCE, "control: without its momentum it goes on in another way"


def apart(ours, truth):
    return harness.largest_relative(list(itertools.chain(*ours)), list(itertools.chain(*truth)))


@pytest.mark.slow
def test_it_steps_an_objective_s_own_parameters_and_resumes_them(tmp_path):
    from tests.parity.objectives import Gates
    from tests.parity.test_objectives import load_and_train as resume
    from tests.parity.test_objectives import train_and_save as run

    plan = sgd_plan(Case(zero=1, pp=2, accumulation=4), train_iters=3)
    uninterrupted = harness.on_engine(plan, run, tmp_path, objective=Gates())
    resumed = harness.on_engine(plan, resume, tmp_path, objective=Gates())
    for (_, _, _, wanted), (_, _, _, shards) in zip(uninterrupted, resumed, strict=True):
        assert all(torch.equal(shards[name].value, shard.value) for name, shard in wanted.items())
    [checkpoint_folder, *_] = list_checkpoints(tmp_path)
    keys = CheckpointReader(checkpoint_folder).index.tensors
    assert any(key.startswith("momentum_buffer/") and is_own(key.partition("/")[2]) for key in keys)


def test_another_optimizer_or_other_arguments_do_not_resume_it(tmp_path):
    plan = sgd_plan(Case(zero=0))
    harness.on_engine(plan, train_and_save, tmp_path)

    def refused(engine, folder):
        with pytest.raises(CheckpointError) as error:
            load_and_train(engine, folder)
        load_and_train(engine, folder, weights_only=True)  # a new run may begin with the weights
        return str(error.value)

    adamw = dataclasses.replace(plan.optimizer, plugin=ADAMW, states=ADAM_STATES)
    for other in (dataclasses.replace(plan, optimizer=adamw), sgd_plan(Case(zero=0), momentum=0.5)):
        [message] = harness.on_engine(other, refused, tmp_path)
        assert "was trained by the optimizer my_sgd:sgd,momentum=0.8" in message
        assert f"the plan says {other.optimizer.plugin}" in message


# ---- memory, and what a spec promises -------------------------------------------------------------------------------


def test_the_engine_holds_as_many_bytes_as_are_planned():
    def bytes_held(engine):
        steps_of(engine, range(1))
        wrapper = engine.engine.optimizer
        states = [tensor for state in wrapper.optimizer.state.values() for tensor in state.values()]
        return sum(tensor.nbytes for tensor in (*states, *wrapper.single_partition_of_fp32_groups))

    plan = sgd_plan(Case(zero=1, dp=2))
    assert state_bytes_per_param(plan.optimizer) == 8
    assert sum(harness.on_engine(plan, bytes_held)) == pytest.approx(8 * plan.num_params, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"states": ()}, "it keeps momentum_buffer for a weight, and its states are nothing"),
        ({"states": ("exp_avg",)}, "it keeps momentum_buffer for a weight, and its states are exp_avg"),
        ({"step_count": StepCount.TENSOR}, "its count of steps is none, and its step_count says tensor"),
        ({"builder": "my_sgd:sgd"}, "is called with groups, plan, offload, momentum"),
        ({"builder": "my_sgd:missing"}, "my_sgd has no missing"),
    ],
)
def test_a_spec_that_is_not_true_is_refused_before_anything_is_built(changes, said, monkeypatch):
    from chinchilla_ds.engine import optimizer as engine_optimizer

    spec = dataclasses.replace(find_optimizer(parse_spec("my_sgd:sgd")), **changes)
    monkeypatch.setattr(engine_optimizer, "optimizer_of", lambda _: spec)
    with pytest.raises(ConfigError, match=said):
        engine_optimizer.make_optimizer(None, plan=sgd_plan(Case(zero=0)))
