"""The optimizer's settings, as requested or chosen by the planner, and why."""

from collections.abc import Iterator

from chinchilla_ds.budget import hyperparameters
from chinchilla_ds.budget.hyperparameter_rules import learning_rates, spread
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.config import RunConfig
from chinchilla_ds.optimizers import find_optimizer
from chinchilla_ds.run_plan import ADAMW, ModelShape, OptimizerPlan, RunPlan

_DEFAULTS = {
    "beta1": hyperparameters.BETA1,
    "beta2": hyperparameters.BETA2,
    "epsilon": hyperparameters.EPSILON,
}


def choose_optimizer(
    config: RunConfig, *, shape: ModelShape, num_tokens: int, batch_tokens: int
) -> tuple[OptimizerPlan, str]:
    """Return the optimizer with its settings, and the reason of its learning rate.

    Args:
        config: Names the optimizer, and any setting.
        shape: The decoder.
        num_tokens: Training tokens.
        batch_tokens: Tokens of one optimizer step.

    Raises:
        ConfigError: the optimizer cannot be found.
    """
    chosen = hyperparameters.choose_learning_rate(shape=shape, num_tokens=num_tokens)
    rate, reason = chosen.value, chosen.reason
    if config.learning_rate is not None:
        rate, reason = float(config.learning_rate), _asked("Learning rate", config.learning_rate, chosen.value)
    decay = hyperparameters.choose_weight_decay(
        num_params=count_parameters(shape=shape).total,
        num_tokens=num_tokens,
        batch_tokens=batch_tokens,
        learning_rate=rate,
    )
    asked = {name: getattr(config, name) for name in _DEFAULTS}
    plan = OptimizerPlan(
        plugin=config.optimizer,
        states=find_optimizer(config.optimizer).states,
        learning_rate=rate,
        weight_decay=decay.value if config.weight_decay is None else float(config.weight_decay),
        gradient_clipping=float(config.gradient_clipping),
        **{name: float(default if asked[name] is None else asked[name]) for name, default in _DEFAULTS.items()},
    )
    return plan, reason


def optimizer_reasons(config: RunConfig, *, made: RunPlan, rate_reason: str) -> Iterator[str]:
    """Yield one sentence per setting of the optimizer, and one for the warm-up.

    Args:
        config: The user's configuration.
        made: The plan, except for its reasons.
        rate_reason: The sentence about the learning rate.
    """
    spec = find_optimizer(config.optimizer)
    rates = learning_rates(shape=made.shape, num_tokens=made.num_tokens)
    yield f"{rate_reason} All rules: {spread(rates)}."
    if config.optimizer != ADAMW:
        yield (
            f"Optimizer {spec.title}: asked for. The laws of learning rate, batch and weight decay were fitted with "
            "AdamW and may be no guide to it."
        )
    decay = hyperparameters.choose_weight_decay(
        num_params=made.num_params,
        num_tokens=made.num_tokens,
        batch_tokens=made.tokens_per_iter,
        learning_rate=made.optimizer.learning_rate,
    )
    if "weight_decay" in spec.settings:
        yield decay.reason if config.weight_decay is None else _asked("Weight decay", config.weight_decay, decay.value)
    yield from _beta_reasons(config, spec.settings)
    yield _warmup_reason(config, made)


def _asked(what: str, value: float, otherwise: float) -> str:
    return f"{what} {value:g}: asked for (chosen would have been {otherwise:.3g})."


def _beta_reasons(config: RunConfig, settings: tuple[str, ...]) -> Iterator[str]:
    read = [name for name in ("beta1", "beta2") if name in settings]
    chosen = [name for name in read if getattr(config, name) is None]
    if chosen:
        names, values = (" and ".join(words) for words in (chosen, [f"{_DEFAULTS[name]:g}" for name in chosen]))
        yield f"{names.capitalize()} {values}: as in the runs that the learning rate was fitted on (arXiv:2503.04715)."
    for name in read:
        if (value := getattr(config, name)) is not None:
            yield _asked(name.capitalize(), value, _DEFAULTS[name])
    if "epsilon" not in settings:
        return
    if config.epsilon is None:
        yield f"Epsilon {hyperparameters.EPSILON:g}: Adam's own (arXiv:1412.6980, algorithm 1)."
    else:
        yield _asked("Epsilon", config.epsilon, hyperparameters.EPSILON)


def _warmup_reason(config: RunConfig, made: RunPlan) -> str:
    chosen = hyperparameters.choose_warmup_iters(
        num_params=made.num_params, tokens_per_iter=made.tokens_per_iter, train_iters=made.batch.train_iters
    )
    if config.warmup_iters is not None:
        return f"Warm-up {config.warmup_iters} steps: asked for (chosen would have been {chosen})."
    return (
        f"Warm-up {made.schedule.warmup_iters} steps: as many tokens as parameters (arXiv:2406.19146), at least "
        f"{hyperparameters.MIN_WARMUP_FRACTION:.1%} of the run, the median of published recipes, and at most "
        f"{hyperparameters.MAX_WARMUP_FRACTION:.0%} of it and {hyperparameters.MAX_WARMUP_ITERS} steps."
    )
