"""Initial weights depend on the seed and the weight's name alone; under ZeRO-3 no rank ever holds the model."""

import math
import weakref

import pytest
import torch

from chinchilla_ds.run_plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

CASES = [
    Case(),
    Case(tp=2),
    Case(zero=1, pp=2),
    Case(zero=1, pp=2, virtual=2, accumulation=4),
    Case(zero=3, dp=2),
    Case(zero=3, tp=2, pp=2),
    Case(tied=True),
    Case(zero=3, tp=2, dp=2, tied=True),
]


def tensor_rank_and_shards(engine):
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_rank(), harness.shards_of(engine.stage)


def weights_on_ranks(plan):
    return harness.full_weights(harness.on_engine(plan, tensor_rank_and_shards))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_starts_from_the_same_full_weights(case):
    plan = case.plan()
    weights, wanted = weights_on_ranks(plan), harness.initial_weights(plan)
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())

    control = harness.initial_weights(case.plan(seed=plan.seed + 1))
    assert all(torch.equal(control[name], value) == (value.dim() == 1) for name, value in weights.items())


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_bf16_starts_from_the_same_weights_rounded(zero_stage):
    plan = Case(zero=zero_stage, dp=2).plan(precision=Precision.BF16)
    weights, wanted = weights_on_ranks(plan), harness.initial_weights(plan)
    assert all(torch.equal(weights[name], value.bfloat16().float()) for name, value in wanted.items())


def test_weights_are_normal_of_the_shapes_deviation():
    plan = Case().plan()
    weights = harness.initial_weights(plan)
    residual = plan.shape.init_std / math.sqrt(2 * plan.shape.num_layers)
    for name, value in weights.items():
        if value.dim() == 1:
            assert (value == 1).all()
            continue
        std = residual if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else plan.shape.init_std
        assert value.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * value.numel()))
        assert abs(value.mean().item()) < 4 * std / math.sqrt(value.numel())
    matrices = [value.flatten()[:1000] for value in weights.values() if value.dim() > 1]
    assert len({tuple(value[:4].tolist()) for value in matrices}) == len(matrices), "two weights were drawn alike"


# ---- what a rank holds ----------------------------------------------------------------------------------------------

_most_live_elements = 0


def watch_parameters():
    """Keep the largest number of elements that parameters hold together at any time a parameter is made or gathered."""
    known = []

    def look():
        global _most_live_elements
        live = sum(parameter.numel() for reference in known if (parameter := reference()) is not None)
        _most_live_elements = max(_most_live_elements, live)

    from chinchilla_ds.engine import zero

    register, gather = torch.nn.Module.register_parameter, zero._gather_for_writing

    def watched_register(self, name, parameter):
        if parameter is not None:
            known.append(weakref.ref(parameter))
        register(self, name, parameter)
        look()

    def watched_gather(parameter):
        context = gather(parameter)

        class Watched:
            def __enter__(self):
                context.__enter__()
                look()

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Watched()

    torch.nn.Module.register_parameter = watched_register
    zero._gather_for_writing = watched_gather


def held_elements(engine):
    """Return what this rank keeps after the build, and the most that it ever had whole at once."""
    parameters = list(engine.stage.parameters())
    kept = sum(p.ds_tensor.numel() if hasattr(p, "ds_id") else p.numel() for p in parameters)
    return kept, _most_live_elements


@pytest.mark.parametrize("data_parallel_size", [2, 4])
def test_zero3_never_holds_the_model_on_one_rank(data_parallel_size):
    plan = Case(zero=3, dp=data_parallel_size).plan()
    largest = max(value.numel() for value in harness.initial_weights(plan).values())
    for kept, most in harness.on_engine(plan, held_elements, prepare=watch_parameters):
        assert kept == pytest.approx(plan.num_params / data_parallel_size, rel=0.01)
        assert largest <= most <= plan.num_params / 3


def test_zero3_control_zero1_holds_the_model():
    plan = Case(zero=1, dp=2).plan()
    for kept, most in harness.on_engine(plan, held_elements, prepare=watch_parameters):
        assert kept == most == plan.num_params
