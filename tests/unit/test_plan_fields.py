"""Every field of a plan has its range, and no part of a plan contradicts another: a file that says so is refused."""

import ast
import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chinchilla_ds
from chinchilla_ds.budget.cluster_plan import ClusterRequest, plan_on_cluster
from chinchilla_ds.budget.plan_checks import plan_problems
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.budget.speed.devices import get_device
from chinchilla_ds.cli.main import main
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import ConfigError, LayoutError, PlanError
from chinchilla_ds.run_plan import Cluster, Decay, Interval, MemoryBytes, RunPlan, StepTime
from chinchilla_ds.runs.plan_file import read_plan
from chinchilla_ds.testing import tiny_plan

Place = tuple[str | int, ...]

MAY_BE_ZERO = {
    "layout.zero_stage",
    "optimizer.weight_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.gradient_clipping",
    "schedule.min_learning_rate",
    "seed",
    "memory_bytes.host",
    "memory_bytes.nvme",
    "memory_bytes.objective",
    "memory_bytes.pipeline_stage",
    "objective_flops_per_token",
}
MAY_BE_NULL = {"unique_tokens"}
BEYOND_ANY_RANGE = ("-1", "-0.5", "1e300", "1" + "0" * 40, "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "1e400")
OF_NO_NUMBER = ("true", '"1"', "null", "[]", "{}", "[1]")


def full_plan() -> RunPlan:
    """Return a plan that has every part."""
    plan = tiny_plan(train_iters=25)
    loss, amount = (5.0, 6.0), (1e5, 2e5)
    interval = Interval(level=0.8, num_params=amount, num_tokens=amount, tokens_per_param=(1.0, 2.0), loss=loss)
    return dataclasses.replace(
        plan,
        unique_tokens=1000,
        prediction=dataclasses.replace(plan.prediction, interval=interval),
        cluster=Cluster(device="h100", world_size=1, devices_per_node=8, device_memory_bytes=80 << 30),
        memory_bytes=MemoryBytes(
            weights=1, gradients=2, optimizer=3, activations=4, logits=5, buffers=6, margin=7, total=28, host=8, nvme=9
        ),
        step_time=StepTime(
            compute_s=1.0,
            tensor_parallel_s=0.5,
            pipeline_s=0.25,
            data_parallel_s=0.125,
            optimizer_s=0.0625,
            total_s=1.9375,
            mfu=0.25,
            hfu=0.375,
        ),
    )


TREE: dict[str, Any] = json.loads(full_plan().to_json())
for derived in ("tokens_per_param", "predicted_loss", "interval", "step_time_s", "wall_clock_s"):
    del TREE[derived]  # they are refused for following from others, whatever stands in the others


def numbers(value: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, (*place, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


NUMBERS = [place for place in numbers(TREE) if place != ("format_version",)]


def name_of(place: Place) -> str:
    return ".".join(step for step in place if isinstance(step, str))


def edited(place: Place, text: str) -> str:
    """Return the plan's JSON with other text, which need not be JSON, in one place."""
    tree = copy.deepcopy(TREE)
    holder: Any = tree
    for step in place[:-1]:
        holder = holder[step]
    assert place[-1] in holder if isinstance(holder, dict) else True
    holder[place[-1]] = "HERE"
    return json.dumps(tree).replace('"HERE"', text)


def refusal(text: str, folder: Path) -> str | None:
    """Return what a plan file is refused with; None: it is not."""
    path = folder / "plan.json"
    path.write_text(text)
    try:
        plan = read_plan(path)
    except (ConfigError, LayoutError) as error:
        problems = error.problems
    else:
        problems = ()
    if problems:
        assert all("\n" not in problem and len(problem) < 500 for problem in problems)
        return "\n".join(problems)
    assert plan == RunPlan.from_json(plan.to_json())
    return None


def test_the_plan_with_every_part_is_read(tmp_path: Path) -> None:
    assert refusal(json.dumps(TREE), tmp_path) is None
    assert refusal(full_plan().to_json(), tmp_path) is None
    missing = {name for name, value in dataclasses.asdict(full_plan()).items() if value is None}
    assert not missing, "the walk below sees every field"
    assert len(NUMBERS) == 75


@pytest.mark.parametrize("value", [*BEYOND_ANY_RANGE, *OF_NO_NUMBER])
def test_every_number_has_a_range_and_a_type(value: str, tmp_path: Path) -> None:
    for place in NUMBERS:
        said = refusal(edited(place, value), tmp_path)
        if value == "null" and name_of(place) in MAY_BE_NULL:
            assert said is None
            continue
        assert said is not None, f"{place} may be {value}"
        is_json = value not in ("NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400)
        assert (str(place[-1]) if is_json else "not JSON that can be read") in said


def test_zero_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    taken = {name_of(place) for place in NUMBERS if refusal(edited(place, "0"), tmp_path) is None}
    assert taken == MAY_BE_ZERO


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("optimizer.learning_rate", -1, "plan.optimizer.learning_rate is -1; it must be above 0"),
        ("optimizer.learning_rate", 1.5, "plan.optimizer.learning_rate is 1.5; it must be at most 1"),
        ("optimizer.beta1", 2, "plan.optimizer.beta1 is 2; it must be below 1"),
        ("optimizer.beta2", 1.0, "plan.optimizer.beta2 is 1.0; it must be below 1"),
        ("layout.zero_stage", 7, "plan.layout.zero_stage is 7; it must be at most 3"),
        ("shape.kv_channels", 15, "plan.shape.kv_channels is 15; it must be a multiple of 2"),
        ("shape.num_query_groups", 3, "num_attention_heads (4) must be a multiple of shape.num_query_groups (3)"),
        ("shape.vocab_size", 257, "padded_vocab_size (256 rows) must hold shape.vocab_size (257 pieces)"),
        ("shape.tied_embeddings", 1, "plan.shape.tied_embeddings is 1; it must be true or false"),
        ("batch.train_iters", 30, "num_tokens is 1600, but its batch and steps give 1920 tokens"),
        ("batch.global_batch_size", 4, "num_tokens is 1600, but its batch and steps give 3200 tokens"),
        ("batch.micro_batch_size", 1, "batch.global_batch_size (2 sequences) must be batch.micro_batch_size (1)"),
        ("shape.seq_length", 64, "num_tokens is 1600, but its batch and steps give 3200 tokens"),
        ("shape.num_layers", 5, "num_params is 180800, but its shape has"),
        ("num_params", 180801, "num_params is 180801, but its shape has 180800 parameters"),
        ("true_flops", 1e9, "true_flops is 1e+09, but flops_per_token x num_tokens is"),
        ("flops_per_token", -1, "plan.flops_per_token is -1; it must be above 0"),
        ("compute_budget_flops", 1e20, "compute_budget_flops is 1e+20, but the run spends"),
        ("schedule.warmup_iters", 26, "warmup_iters (26) + decay_iters (24) must fit into train_iters (25)"),
        ("schedule.decay_iters", 20, "a cosine decays over all 24 steps after its 1 warm-up steps, not over 20"),
        ("schedule.min_learning_rate", 0.5, "min_learning_rate (0.5) must be at most optimizer.learning_rate (0.001)"),
        ("schedule.decay", "linear", "plan.schedule.decay is 'linear'; it must be one of"),
        ("device", "tpu", "device is 'tpu'; it must be one of cpu, cuda"),
        ("precision", "fp8", "plan.precision is 'fp8'; it must be one of"),
        ("prediction.interval.loss", [6.0, 5.0], "interval.loss must start at its lower bound, and 6 is above 5"),
        ("prediction.interval.loss", [6.0], "plan.prediction.interval.loss"),
        ("prediction.interval.level", 1.0, "plan.prediction.interval.level is 1.0; it must be below 1"),
        ("cluster.world_size", 2, "cluster.world_size (2 devices) must be the layout's 1 ranks"),
        ("memory_bytes.total", 29, "memory_bytes.total is 29, and the parts add up to 28"),
        ("memory_bytes.logits", 50, "memory_bytes.total is 28, and the parts add up to 73"),
        ("memory_bytes.pipeline_stage", 1, "memory_bytes.pipeline_stage is 1, and there are 1 stages, counted from 0"),
        ("step_time.total_s", 2.0, "step_time.total_s is 2, and the parts add up to 1.9375 s"),
        ("step_time.mfu", 0.5, "step_time.hfu (0.375) counts recomputation too, so it must be at least mfu (0.5)"),
        ("reasons", [1], "plan.reasons[0] is 1; it must be text"),
        ("format_version", 3, "not a chinchilla-ds plan of format_version 2"),
        ("format_version", True, "not a chinchilla-ds plan of format_version 2"),
    ],
)
def test_what_is_wrong_is_said(place: str, value: Any, said: str, tmp_path: Path) -> None:
    assert said in (refusal(edited(tuple(place.split(".")), json.dumps(value)), tmp_path) or "nothing")


def test_flops_are_those_of_the_shape_even_where_their_products_agree(tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    for name in ("flops_per_token", "true_flops", "compute_budget_flops"):
        tree[name] *= 1.5
    said = refusal(json.dumps(tree), tmp_path)
    assert said is not None
    assert "flops_per_token is 1.62202e+06, but its shape takes 1.08134e+06 FLOPs; make a new plan" in said


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    tree["optimizer"]["beta1"], tree["seed"], tree["shape"]["num_layer"] = 1, -4, tree["shape"].pop("num_layers")
    said = refusal(json.dumps(tree), tmp_path)
    assert said is not None
    assert [line.partition(": plan.")[2] for line in said.splitlines()] == [
        "optimizer.beta1 is 1; it must be below 1",
        "seed is -4; it must be at least 0",
        "shape.num_layer is not a field; did you mean 'num_layers'?",
        "shape.num_layers is missing",
    ]


def test_a_derived_number_of_any_length_is_told_in_a_line(tmp_path: Path) -> None:
    tree = {**TREE, "tokens_per_param": "x" * 10_000}
    said = refusal(json.dumps(tree), tmp_path)
    assert said is not None
    assert "plan.tokens_per_param is" in said


def test_a_plan_that_contradicts_itself_cannot_be_made() -> None:
    plan = tiny_plan()
    with pytest.raises(ValueError, match=r"num_tokens is 320, but its batch and steps give 640 tokens"):
        dataclasses.replace(plan, batch=dataclasses.replace(plan.batch, train_iters=10))


@pytest.mark.parametrize(
    ("place", "value"), [("optimizer.learning_rate", "-1"), ("flops_per_token", "-1"), ("num_params", "NaN")]
)
def test_memory_of_an_edited_plan_ends_in_a_line(
    place: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(edited(tuple(place.split(".")), value))
    assert main(["memory", str(path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"error: plan {path}: ")


# ---- the planner's own plans -----------------------------------------------------------------------------------------

CONFIGS = {
    "default": RunConfig(),
    "smallest": RunConfig(compute_budget_flops=7e9, vocab_size=512, seq_length=64, global_batch_size=4),
    "largest": RunConfig(compute_budget_flops=1e27),
    "most tokens": RunConfig(num_params=1e12, num_tokens=9e17),
    "longest": RunConfig(compute_budget_flops=1e26, seq_length=2**24),
    "wsd": RunConfig(compute_budget_flops=1e18, decay=Decay.WSD, learning_rate=1.0, gradient_clipping=0.0),
    "tied": RunConfig(compute_budget_flops=1e19, tied_embeddings=True, seed=0),
    "shape": RunConfig(shape="llama-3-8b", compute_budget_flops=1e22),
    "repeated": RunConfig(compute_budget_flops=1e22, unique_tokens=1e5),
    "served": RunConfig(compute_budget_flops=1e23, inference_tokens=1e12),
    "rarely evaluated": RunConfig(compute_budget_flops=1e12, eval_interval_tokens=10**18),
    "other law": RunConfig(compute_budget_flops=1e20, law="kaplan2020"),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_planner_makes_is_read_back(name: str, device: str, tmp_path: Path) -> None:
    plan = make_plan(CONFIGS[name], world_size=1, device=device)
    assert list(plan_problems(plan)) == []
    assert refusal(plan.to_json(), tmp_path) is None
    assert RunPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("world_size", [1, 8, 512])
def test_what_is_planned_for_a_cluster_is_read_back(world_size: int, tmp_path: Path) -> None:
    request = ClusterRequest(device=get_device("h100-sxm"), world_size=world_size, devices_per_node=8)
    plan = plan_on_cluster(RunConfig(compute_budget_flops=1e20), request=request).plan
    assert None not in (plan.memory_bytes, plan.step_time, plan.cluster)
    assert refusal(plan.to_json(), tmp_path) is None


def test_a_layout_of_many_ranks_is_read_back(tmp_path: Path) -> None:
    layout = LayoutConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, zero_stage=3)
    plan = make_plan(RunConfig(compute_budget_flops=1e18, layout=layout), world_size=8, device="cuda")
    assert refusal(plan.to_json(), tmp_path) is None


def test_more_tokens_than_can_be_counted_have_no_plan() -> None:
    with pytest.raises(PlanError, match=r"tokens; at most 1e\+18 can be planned"):
        make_plan(RunConfig(compute_budget_flops=1e33, num_params=1e7), world_size=1, device="cpu")


def test_tokens_go_by_steps_taken_and_flops_by_steps_tried() -> None:
    plan = tiny_plan(train_iters=10)
    all_steps = plan.batch.train_iters
    assert plan.consumed_tokens(iteration=all_steps) == plan.num_tokens
    assert plan.flops_spent(attempts=all_steps) == pytest.approx(plan.true_flops, rel=1e-12)
    tokens, flops = plan.consumed_tokens(iteration=7), plan.flops_spent(attempts=9)  # two were skipped
    assert flops / tokens == pytest.approx(9 / 7 * plan.flops_per_token)


def test_tokens_and_flops_so_far_are_computed_in_one_place() -> None:
    package = Path(chinchilla_ds.__file__).parent
    places = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        if any(isinstance(side, ast.Attribute) and side.attr == "tokens_per_iter" for side in (node.left, node.right))
    }
    assert places == {"run_plan.py"}
