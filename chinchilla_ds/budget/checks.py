"""Invalid values of a RunConfig, each with its rule and the nearest valid value."""

import math
from collections.abc import Callable, Iterator

from chinchilla_ds.budget.laws.lookup import get_law
from chinchilla_ds.budget.shape.published import named_shape
from chinchilla_ds.config import LayoutConfig, RunConfig, held_out_problem
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.optimizers import find_optimizer
from chinchilla_ds.run_plan import (
    DEVICE_KINDS,
    MAX_AMOUNT,
    MAX_GRADIENT_CLIPPING,
    MAX_SEED,
    MAX_SEQUENCES,
    MAX_WIDTH,
    OptimizerPlan,
)

MAX_LEARNING_RATE = 1.0
MAX_EPSILON = 0.1
LARGEST_BUDGET = 1e35
LARGEST_NUM_PARAMS = 1e15
LARGEST_NUM_TOKENS = 1e18
"""Larger values are probably FLOPs given as parameters or tokens."""


def config_problems(config: RunConfig, *, world_size: int, device: str) -> Iterator[str]:
    """Yield every value of the configuration that is invalid on its own.

    Args:
        config: the user's configuration.
        world_size: number of ranks.
        device: kind of device, "cpu" or "cuda".
    """
    yield from _amount_problems(config)
    for name, look_up in ((config.law, get_law), (config.shape, named_shape)):
        try:
            _ = name is None or look_up(name)
        except ConfigError as error:
            yield from error.problems
    yield from _count_problems(config, world_size=world_size)
    yield from _optimizer_problems(config)
    yield from _layout_value_problems(config.layout)
    yield from _data_problems(config)
    if device not in DEVICE_KINDS:
        yield f"device is {device!r}; it must be one of {', '.join(DEVICE_KINDS)}"


def _amount_problems(config: RunConfig) -> Iterator[str]:
    """Yield the problems of budget, size and tokens, alone and combined."""
    amounts = {
        "compute_budget_flops": (config.compute_budget_flops, "FLOPs", LARGEST_BUDGET, "1e21"),
        "num_params": (config.num_params, "parameters", LARGEST_NUM_PARAMS, "7e9"),
        "num_tokens": (config.num_tokens, "tokens", LARGEST_NUM_TOKENS, "1e12"),
        "unique_tokens": (config.unique_tokens, "tokens", LARGEST_NUM_TOKENS, "1e12"),
        "inference_tokens": (config.inference_tokens, "tokens", LARGEST_NUM_TOKENS, "1e12"),
    }
    for name, (value, unit, largest, example) in amounts.items():
        if value is None:
            continue
        if not _is_number(value) or value <= 0:
            yield _broken(name, value, unit, "a positive finite number", example)
        elif value > largest:
            rule = f"at most {largest:g} {unit}; is this another quantity?"
            yield f"`{name}` ({value:g} {unit}) must be {rule} For example: {example}"
    if config.shape is not None and config.num_params is not None:
        sizes = f"`shape` ({config.shape!r}) and `num_params` ({config.num_params:g})"
        yield f"{sizes} both fix the model: drop one of them"
    size = config.shape if config.num_params is None else config.num_params
    if None not in (config.compute_budget_flops, size, config.num_tokens):
        yield (
            "`compute_budget_flops`, `num_tokens` and the model's size fix one another, and all three are given: drop "
            "one, and it follows"
        )
    if config.inference_tokens is not None and (size is not None or config.num_tokens is not None):
        yield "`inference_tokens` chooses the model's size and its tokens: give it with `compute_budget_flops` alone"
    if config.inference_tokens is not None and config.unique_tokens is not None:
        yield "`inference_tokens` and `unique_tokens` use two laws that cannot be combined: drop one of them"


def _count_problems(config: RunConfig, *, world_size: int) -> Iterator[str]:
    counts = {
        "seq_length": (config.seq_length, "tokens", MAX_WIDTH),
        "vocab_size": (config.vocab_size, "pieces", MAX_WIDTH),
        "global_batch_size": (config.global_batch_size, "sequences", MAX_SEQUENCES),
        "micro_batch_size": (config.micro_batch_size, "sequences", MAX_SEQUENCES),
        "eval_interval_tokens": (config.eval_interval_tokens, "tokens", MAX_AMOUNT),
        "world_size": (world_size, "ranks", MAX_WIDTH),
    }
    for name, (value, unit, largest) in counts.items():
        if value is None:
            continue
        if not _is_count(value):
            yield _broken(name, value, unit, "a whole number of at least 1", "1")
        elif value > largest:
            yield _broken(name, value, unit, f"at most {largest}", str(largest))
    if not isinstance(config.seed, int) or isinstance(config.seed, bool) or not 0 <= config.seed <= MAX_SEED:
        nearest = "0" if _is_number(config.seed) and config.seed < 0 else str(MAX_SEED)
        yield _broken("seed", config.seed, "", f"a whole number from 0 to {MAX_SEED}", nearest)


def _optimizer_problems(config: RunConfig) -> Iterator[str]:
    rate, clipping = config.learning_rate, config.gradient_clipping
    yield from _setting_problems(config)
    if rate is not None and (not _is_number(rate) or not 0 < rate <= MAX_LEARNING_RATE):
        rule = f"above 0 and at most {MAX_LEARNING_RATE:g}"
        yield _broken("learning_rate", rate, "", rule, "leave it out, so that Step Law chooses")
    if not _is_number(clipping) or clipping < 0:
        yield _broken("gradient_clipping", clipping, "global norm", "finite and at least 0", "0, which switches it off")
    elif clipping > MAX_GRADIENT_CLIPPING:
        rule = f"at most {MAX_GRADIENT_CLIPPING:g}"
        yield _broken("gradient_clipping", clipping, "global norm", rule, "0, which switches it off")


def _setting_problems(config: RunConfig) -> Iterator[str]:
    """Yield the problems of the optimizer and of its given settings."""
    rules: dict[str, tuple[str, Callable[[float], bool]]] = {
        "weight_decay": ("from 0 to 1", lambda value: 0 <= value <= 1),
        "beta1": ("at least 0 and below 1", lambda value: 0 <= value < 1),
        "beta2": ("at least 0 and below 1", lambda value: 0 <= value < 1),
        "epsilon": ("above 0 and at most 0.1", lambda value: 0 < value <= MAX_EPSILON),
    }
    given = {name: value for name in rules if (value := getattr(config, name)) is not None}
    for name, value in given.items():
        rule, holds = rules[name]
        if not _is_number(value) or not holds(value):
            yield _broken(name, value, "", rule, f"leave it out for the default, {getattr(OptimizerPlan, name):g}")
    warmup = config.warmup_iters
    if warmup not in (None, 0) and not (_is_count(warmup) and warmup <= MAX_AMOUNT):
        yield _broken("warmup_iters", warmup, "steps", f"a whole number from 0 to {MAX_AMOUNT}", "0")
    try:
        spec = find_optimizer(config.optimizer)
    except ConfigError as error:
        yield from error.problems
        return
    for name in given:
        if name not in spec.settings:
            reads = " and ".join(f"`{field}`" for field in ("learning_rate", *spec.settings))
            yield f"`{name}` ({given[name]:g}) has no effect: the optimizer {spec.title} reads {reads}; leave it out"


def _layout_value_problems(layout: LayoutConfig) -> Iterator[str]:
    sizes = {
        "tensor_model_parallel_size": (layout.tensor_model_parallel_size, "ranks"),
        "pipeline_model_parallel_size": (layout.pipeline_model_parallel_size, "stages"),
        "virtual_pipeline_model_parallel_size": (layout.virtual_pipeline_model_parallel_size, "chunks per stage"),
    }
    for name, (value, unit) in sizes.items():
        if not _is_count(value):
            yield _broken(f"layout.{name}", value, unit, "a whole number of at least 1", "1")
    stage = layout.zero_stage
    if not isinstance(stage, int) or isinstance(stage, bool) or stage not in range(4):
        nearest = "3" if _is_number(stage) and stage > 3 else "0"
        yield _broken("layout.zero_stage", stage, "", "0, 1, 2 or 3", nearest)


def _data_problems(config: RunConfig) -> Iterator[str]:
    if problem := held_out_problem(config.data.held_out_fraction, name="data.held_out_fraction"):
        yield problem
    epochs = config.data.max_epochs
    if not _is_number(epochs) or epochs <= 0:
        yield _broken("data.max_epochs", epochs, "epochs", "a positive finite number", "1")


def _broken(name: str, value: object, unit: str, rule: str, nearest: str) -> str:
    shown = f"{value!r} {unit}".strip()
    return f"`{name}` ({shown}) must be {rule}; nearest: {nearest}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
