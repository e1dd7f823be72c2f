"""Objectives over layouts: each equals one plain PyTorch process, and the default one is what it was, bit by bit."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from chinchilla_ds.checkpoint.folded import FoldedReader
from chinchilla_ds.checkpoint.folder import list_checkpoints
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.engine.checkpoint import Checkpointer, load
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.objective import LossValue, Objective, Sum
from chinchilla_ds.run_plan import Precision, Recompute
from tests.parity import harness, objective_reference
from tests.parity.layouts import Case
from tests.parity.objectives import Distillation, Gates, GatesInASum, Tempered, ZLoss
from tests.parity.reference_llama import ReferenceLlama, load_from_megatron_state

TOLERANCE = 2e-6
"""Of losses, norms, scalars, and of weights relative to the weight."""
CHANGE_TOLERANCE = 1e-3
"""Of weights, relative to the change that training made to them."""


def case(zero, tp=1, pp=1, dp=1, **more):
    return Case(zero=zero, tp=tp, pp=pp, dp=dp, accumulation=4 // dp, **more)


LAYOUTS = [
    case(zero, tp, pp, dp)
    for zero in (0, 1, 2, 3)
    for tp, pp, dp in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2))
    if not (zero == 0 and pp > 1)  # the planner refuses it
]
LAYOUTS += [
    case(3, 2, 2, sequence_parallel=True),
    case(1, 2, sequence_parallel=True),
    case(3, 1, 2, recompute="full"),
    case(1, 1, 2, virtual=2),
    case(3, 2, 2, virtual=2, recompute="full", sequence_parallel=True),
]


def over_layouts(*, quick):
    """Run every layout; those that are not `quick` are slow tests."""
    marked = [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in LAYOUTS]
    return pytest.mark.parametrize("layout", marked, ids=str)


def plan_of(layout, **changes):
    """Return a plan of three steps whose vocabulary has rows of padding."""
    plan = layout.plan(train_iters=3, **changes)
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, vocab_size=250))


def teacher_of(plan):
    """Return a plan that is deeper and wider than the student's."""
    shape = dataclasses.replace(
        plan.shape, num_layers=8, hidden_size=96, ffn_hidden_size=160, num_attention_heads=8, num_query_groups=4,
        kv_channels=12, init_std=0.08,
    )  # fmt: skip
    layout = dataclasses.replace(plan.layout, recompute=Recompute.NONE)
    return dataclasses.replace(plan, shape=shape, seed=99, layout=layout)


def train(engine):
    """A body for `on_engine`: train, and evaluate."""
    from megatron.core import parallel_state

    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in range(engine.attempts, plan.batch.train_iters)
    ]
    evaluation = engine.evaluate(harness.own_micro_batches(plan, harness.HELD_OUT_STEP))
    return results, evaluation, parallel_state.get_tensor_model_parallel_rank(), harness.shards_of(engine.stage)


def joined(ranks):
    """Join what ranks sent home; all must tell the same."""
    results, evaluation, _, _ = ranks[0]
    for others, measured, _, _ in ranks[1:]:
        assert [str(step) for step in others] == [str(step) for step in results], "ranks report different steps"
        assert measured == evaluation
    return objective_reference.Told(
        losses=[step.loss for step in results],
        objective_losses=[step.loss if step.objective_loss is None else step.objective_loss for step in results],
        scalars=[step.scalars for step in results],
        grad_norms=[step.grad_norm for step in results],
        evaluation=evaluation,
        weights=harness.full_weights([(rank, shards) for _, _, rank, shards in ranks]),
    )


def trained(plan, objective=None, **more):
    return joined(harness.on_engine(plan, train, objective=objective, **more))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart:
    """Largest relative differences."""

    numbers: float
    """Of losses, norms, scalars and the evaluation."""
    weights: float
    of_change: float


def apart(ours, truth, start):
    assert ours.weights.keys() == truth.weights.keys() == start.keys()
    names = truth.scalars[0].keys()
    assert all(step.keys() == names for step in (*ours.scalars, *truth.scalars))

    def numbers(told):
        of_scalars = [step[name] for step in told.scalars for name in sorted(names)]
        return [*told.losses, *told.objective_losses, *told.grad_norms, *of_scalars, told.evaluation]

    pairs = {name: (ours.weights[name], value) for name, value in truth.weights.items()}
    return Apart(
        numbers=harness.largest_relative(numbers(ours), numbers(truth)),
        weights=max(float((a - b).norm() / b.norm()) for a, b in pairs.values()),
        of_change=max(float((a - b).norm() / (b - start[name]).norm()) for name, (a, b) in pairs.items()),
    )


def check(plan, objective, make_truth, **more):
    truth = make_truth(harness_plan := single(plan))
    start = objective_reference.initial(harness_plan, truth)
    found = apart(trained(plan, objective, **more), objective_reference.train(harness_plan, truth), start)
    print(f"numbers {found.numbers:.1e}, weights {found.weights:.1e}, of their change {found.of_change:.1e}")
    assert found.numbers < TOLERANCE
    assert found.weights < TOLERANCE
    assert found.of_change < CHANGE_TOLERANCE


def single(plan):
    """Return the plan on one rank: the same steps, on the same micro-batches."""
    return dataclasses.replace(plan, layout=Case(zero=0).plan().layout)


# ---- the default ----------------------------------------------------------------------------------------------------


class Directly(Objective):
    """Cross entropy computed here, and not by the package."""

    def loss(self, output, /):
        return LossValue(loss=self._cross_entropy(output))

    def evaluation_loss(self, output, /):
        return self._cross_entropy(output)

    is_evaluation_loss = True

    def _cross_entropy(self, output):
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits, labels = output.logits, output.batch.labels
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            return vocab_parallel_cross_entropy(logits.float(), labels.transpose(0, 1).contiguous()).t().mean()
        s, b, v = logits.shape
        losses = F.cross_entropy(logits.view(s * b, v).float(), labels.t().reshape(-1), reduction="none")
        return losses.view(s, b).t().mean()


@over_layouts(quick=[case(3, 2, 2)])
def test_the_default_is_cross_entropy_bit_for_bit(layout):
    plan = plan_of(layout)
    ours, directly = trained(plan), trained(plan, Directly())
    assert (ours.losses, ours.grad_norms, ours.evaluation) == (
        directly.losses, directly.grad_norms, directly.evaluation,
    )  # fmt: skip
    assert all(torch.equal(ours.weights[name], value) for name, value in directly.weights.items())
    assert ours.scalars == [{}] * len(ours.losses)


def test_control_another_loss_is_not_the_default():
    plan = plan_of(case(0))
    ours, other = trained(plan), trained(plan, ZLoss(coefficient=1e-4))
    assert other.losses[0] == ours.losses[0], "the measured loss of the same weights"
    assert other.losses[1:] != ours.losses[1:]
    assert other.objective_losses[0] != ours.losses[0]


# ---- other losses ---------------------------------------------------------------------------------------------------


@over_layouts(quick=[case(0, 2)])
def test_an_auxiliary_loss_equals_one_process(layout):
    check(plan_of(layout), ZLoss(), objective_reference.ZLossTruth)


BESIDE = [pytest.param(True, id="beside"), pytest.param(False, id="passes first", marks=pytest.mark.slow)]


@pytest.mark.parametrize("beside", BESIDE)
@over_layouts(quick=[case(1, 1, 2)])
def test_distillation_equals_one_process(layout, beside):
    plan = plan_of(layout)
    teacher = teacher_of(plan)
    objective = Distillation(teacher_plan=teacher, beside=beside)
    check(plan, objective, lambda alone: objective_reference.DistillationTruth(alone, teacher))


@pytest.mark.slow
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.zero == 3], ids=str)
def test_distillation_from_a_partitioned_teacher_equals_one_process(layout, beside):
    plan = plan_of(layout)
    teacher = teacher_of(plan)
    objective = Distillation(teacher_plan=teacher, beside=beside, partitioned=True)
    check(plan, objective, lambda alone: objective_reference.DistillationTruth(alone, teacher))


@over_layouts(quick=[case(1, 2)])
def test_gates_with_parameters_of_their_own_equal_one_process(layout):
    check(plan_of(layout), Gates(), objective_reference.GatesTruth)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.zero == 3], ids=str)
def test_gates_built_in_parts_equal_one_process(layout):
    check(plan_of(layout), Gates(within_init=True), objective_reference.GatesTruth)


@over_layouts(quick=[case(1, 1, 2)])
def test_a_head_on_the_last_stage_alone_equals_one_process(layout):
    check(plan_of(layout), Tempered(), objective_reference.TemperedTruth)


@over_layouts(quick=[case(3, 2, 2)])
def test_the_sum_of_gates_and_distillation_equals_one_process(layout):
    plan = plan_of(layout)
    teacher = teacher_of(plan)
    objective = Sum(gates=Gates(), teacher=Distillation(teacher_plan=teacher))
    assert objective.scalar_names == ("gates/penalty", "gates/open", "teacher/kl")

    def truth(alone):
        return objective_reference.SumTruth(
            alone,
            gates=objective_reference.GatesTruth(alone, prefix="gates."),
            teacher=objective_reference.DistillationTruth(alone, teacher),
        )

    check(plan, objective, truth)


def test_control_a_replica_whose_gradients_nobody_sums_differs():
    plan = plan_of(case(1, 2))
    with pytest.raises(AssertionError, match=r"replicas of .*gate\.scale differ"):
        check(plan, Gates(reduces_scale=False), objective_reference.GatesTruth)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("layout", [case(1, 1, 2), case(3, 2, 2), case(1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["gates", "distillation"])
def test_low_precision_follows_fp32(kind, layout, precision):
    """A gradient that is given past the loss carries FP16's loss scale."""
    plan = plan_of(layout, precision=precision, learning_rate=1e-3)
    alone = single(dataclasses.replace(plan, precision=Precision.FP32))
    if kind == "gates":
        objective, truth = Gates(), objective_reference.GatesTruth(alone)
    else:
        teacher = teacher_of(plan)
        objective, truth = Distillation(teacher_plan=teacher), objective_reference.DistillationTruth(alone, teacher)
    ours, wanted = trained(plan, objective), objective_reference.train(alone, truth)
    pairs = [(getattr(ours, name), getattr(wanted, name)) for name in ("losses", "objective_losses", "grad_norms")]
    assert max(harness.largest_relative(a, b) for a, b in pairs) < 1e-2
    if kind == "gates":
        shares = [[step["open"] for step in told.scalars] for told in (ours, wanted)]
        assert harness.largest_relative(*shares) < 1e-3
        assert shares[1][-1] != shares[1][0], "control: the gates never moved"


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def train_and_save(engine, folder):
    """A body for `on_engine`: save after two steps, then go on."""
    plan, train_iters = engine.plan, engine.plan.batch.train_iters
    for step in range(train_iters - 1):
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
    Checkpointer(engine, folder=folder, ds_config={}).save(state_at(train_iters - 1))
    return train(engine)


def load_and_train(engine, folder):
    """A body for `on_engine`: go on from what `train_and_save` has saved."""
    load(engine, checkpoint=newest(folder))
    return train(engine)


def newest(folder):
    [checkpoint] = list_checkpoints(folder)
    return checkpoint


def state_at(iteration):
    return CheckpointState(iteration=iteration, data_step=iteration, attempts=iteration, elapsed_s=1.0)


def numbers_of(told):
    of_scalars = [value for step in told.scalars for _, value in sorted(step.items())]
    return [*told.losses, *told.objective_losses, *told.grad_norms, *of_scalars, told.evaluation]


MORE_RESUMED = [case(1, 1, 2, 2), case(3, 2, 2), case(0), case(3, dp=2)]


@pytest.mark.parametrize(
    "layout", [case(1, 1, 2), *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_RESUMED)], ids=str
)
def test_a_run_with_gates_is_resumed_bit_by_bit(layout, tmp_path):
    plan = plan_of(layout)
    went_on = joined(harness.on_engine(plan, train_and_save, tmp_path, objective=Gates()))
    resumed = joined(harness.on_engine(plan, load_and_train, tmp_path, objective=Gates()))
    assert numbers_of(resumed) == numbers_of(went_on)
    assert all(torch.equal(resumed.weights[name], value) for name, value in went_on.weights.items())
    assert CheckpointReader(newest(tmp_path)).state.objective_state["multiplier"] != 0.1
    forgot = joined(harness.on_engine(plan, load_and_forget, tmp_path, objective=Gates()))
    assert numbers_of(forgot) != numbers_of(went_on), "control: the multiplier does not show"


def load_and_forget(engine, folder):
    load(engine, checkpoint=newest(folder))
    engine.objective.multiplier = 0.1
    return train(engine)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (case(1, 2), case(3, dp=2)),
        pytest.param(case(3, 2, 2), case(1, 1, 2, 2), marks=pytest.mark.slow),
        pytest.param(case(1, 1, 2, 2), case(0), marks=pytest.mark.slow),
        pytest.param(case(0, 2), case(3, 1, 2, 2), marks=pytest.mark.slow),
        pytest.param(case(1, 1, 2, virtual=2), case(2, 2, 1, 2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gates_move_between_layouts(source, target, tmp_path):
    went_on = joined(harness.on_engine(plan_of(source), train_and_save, tmp_path, objective=Gates()))
    resumed = joined(harness.on_engine(plan_of(target), load_and_train, tmp_path, objective=Gates()))
    assert harness.largest_relative(numbers_of(resumed), numbers_of(went_on)) < TOLERANCE


def save_fresh(engine, folder):
    Checkpointer(engine, folder=folder, ds_config={}).save(state_at(0))


def refusals(engine, folder):
    """A body for `on_engine`: return why a checkpoint is refused, whole and its weights alone, and what loaded."""
    problems = []
    for weights_only in (False, True):
        try:
            load(engine, checkpoint=newest(folder), weights_only=weights_only)
        except CheckpointError as error:
            problems.append(str(error))
    return problems, harness.shards_of(engine.stage)


def test_a_checkpoint_of_another_objective_is_refused_and_both_are_named(tmp_path):
    plan = plan_of(case(1, 1, 2))
    harness.on_engine(plan, save_fresh, tmp_path, objective=Gates(target=0.25))
    for problems, _ in harness.on_engine(plan, refusals, tmp_path):
        whole, weights = problems
        assert "was trained with the objective tests.parity.objectives:Gates,target=0.25" in whole
        assert "the plan's is cross_entropy" in whole
        assert "8 weights that the objective cross_entropy has no place for, such as decoder.layers.0.mlp" in weights


def test_a_new_run_may_begin_with_weights_that_lack_the_objectives_own(tmp_path):
    plan = plan_of(case(1, 1, 2))
    fresh = harness.on_engine(plan, save_fresh, tmp_path)
    assert fresh == [None, None]
    ranks = harness.on_engine(dataclasses.replace(plan, seed=4321), refusals, tmp_path, objective=Gates())
    weights = harness.full_weights([(0, shards) for _, shards in ranks])
    assert all(len(problems) == 1 for problems, _ in ranks), "a resumed run needs the gates, a new one does not"
    wanted = objective_reference.initial(plan, objective_reference.GatesTruth(plan))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())


# ---- folding --------------------------------------------------------------------------------------------------------


def evaluate_and_save(engine, folder):
    Checkpointer(engine, folder=folder, ds_config={}).save(state_at(0))
    return engine.evaluate(harness.own_micro_batches(engine.plan, harness.HELD_OUT_STEP))


def folded_loss(plan, folder, kind):
    """Return the loss of the plain reference with a checkpoint's weights."""
    reader = kind(newest(folder))
    model = ReferenceLlama(plan.shape)
    names = [name for name in reader.names() if ".objective." not in name]
    load_from_megatron_state(model, {name: reader.read(name) for name in names})
    with torch.no_grad():
        losses = [float(model.loss(b.tokens, b.labels)) for b in harness.micro_batches(plan, harness.HELD_OUT_STEP)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("objective", [Gates(), GatesInASum()], ids=["gates", "sum"])
def test_a_plain_decoder_with_folded_weights_computes_the_same(objective, tmp_path):
    plan = plan_of(case(1, 1, 2))
    first, *_ = harness.on_engine(plan, evaluate_and_save, tmp_path, objective=objective)
    assert folded_loss(plan, tmp_path, FoldedReader) == pytest.approx(first, rel=1e-6)
    assert abs(folded_loss(plan, tmp_path, CheckpointReader) - first) > 1e-4, "control: folding does not show"


def test_what_an_objective_does_not_fold_is_refused(tmp_path):
    plan = plan_of(case(0))
    harness.on_engine(plan, save_fresh, tmp_path, objective=Tempered())
    with pytest.raises(
        CheckpointError, match=r"1 weights of its objective .*Tempered.*, and it does not fold objective\.temper\."
    ):
        FoldedReader(newest(tmp_path))
