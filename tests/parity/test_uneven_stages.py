"""Pipeline stages with unequal numbers of layers train the model of a single plain-PyTorch process."""

import itertools

import pytest

from tests.parity import harness
from tests.parity.layouts import Case
from tests.parity.test_layouts import FP32_TOLERANCE, WEIGHTS_TOLERANCE, check_parity


def over_four(**choices) -> Case:
    """Return a case of six layers on four stages: 1, 2, 2, 1."""
    return Case(layers=6, pp=4, accumulation=4, **choices)


QUICK = over_four(zero=1)
SLOW = [
    over_four(zero=3),
    over_four(zero=2, recompute="full"),
    over_four(zero=1, tp=2),
    over_four(zero=3, tp=2, sequence_parallel=True),
    Case(layers=5, pp=2, zero=1, dp=2, accumulation=4),
    Case(layers=7, pp=2, virtual=2, zero=1, accumulation=4),
    Case(layers=6, pp=4, virtual=1, zero=3, accumulation=8),
    Case(layers=7, pp=2, virtual=2, zero=3, tp=2, accumulation=4, recompute="selective"),
]


@pytest.mark.parametrize("case", [QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def test_uneven_stages_equal_a_single_process(case):
    check_parity(case)


def layer_numbers(engine):
    """A body for `on_engine`: the global numbers of this rank's layers, and of how many weights."""
    from chinchilla_ds.model.initialization import global_named_parameters

    names = [name for name, _ in global_named_parameters(engine.stage)]
    numbers = [int(name.split(".")[2]) for name in names if name.startswith("decoder.layers.")]
    return list(dict.fromkeys(numbers)), [name for name in names if not name.startswith("decoder.layers.")]


def test_the_first_and_last_stage_hold_a_layer_less():
    ranks = harness.on_engine(QUICK.plan(), layer_numbers)
    assert [layers for layers, _ in ranks] == [[0], [1, 2], [3, 4], [5]]
    assert [bool(others) for _, others in ranks] == [True, False, False, True]


def test_control_layers_in_another_order_differ(monkeypatch):
    """What stages that number their layers wrongly would train: layers 2 and 3, on two stages, exchanged."""
    plan = QUICK.plan()
    usual = harness.initial_weights(plan)
    exchanged = {"2": "3", "3": "2"}

    def swapped(name):
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = exchanged.get(parts[2], parts[2])
        return ".".join(parts)

    truth = harness.reference(plan)
    monkeypatch.setattr(harness, "initial_weights", lambda _plan: {name: usual[swapped(name)] for name in usual})
    single = Case(zero=0, layers=QUICK.layers, accumulation=4).plan()
    rates = tuple(harness.learning_rate(plan, step) for step in range(plan.batch.train_iters))
    other = harness._reference.__wrapped__(single, rates)
    losses = harness.largest_relative(other.losses, truth.losses)
    assert losses > 2 * FP32_TOLERANCE
    moved = {name: (value - usual[name]).norm() for name, value in truth.weights.items()}
    apart = [(other.weights[name] - truth.weights[name]).norm() / change for name, change in moved.items()]
    assert max(apart) > 10 * WEIGHTS_TOLERANCE


@pytest.mark.parametrize(("pipeline", "virtual"), [(p, v) for p, v in itertools.product((2, 4), (1, 2))])
def test_even_stages_are_cut_as_before(pipeline, virtual):
    """Megatron gets no layout of ours where stages are equal: old runs are cut as they were."""
    from chinchilla_ds.model.decoder import transformer_config

    plan = Case(layers=8, zero=1, pp=pipeline, virtual=virtual, accumulation=4).plan()
    assert transformer_config(plan).pipeline_model_parallel_layout is None
    uneven = Case(layers=7, zero=1, pp=pipeline, virtual=1, accumulation=4).plan()
    assert transformer_config(uneven).pipeline_model_parallel_layout is not None
