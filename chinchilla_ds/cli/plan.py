"""`chinchilla-ds plan`: from FLOPs, GPU-hours, a size or tokens to a plan on a screen, as JSON, or in a file."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.cluster_plan import ClusterPlan, plan_on_devices
from chinchilla_ds.budget.hyperparameter_rules import (
    POWER_LINES_PARAMS,
    Sizes,
    Suggestion,
    batch_sizes_tokens,
    learning_rates,
    weight_decays,
    within,
)
from chinchilla_ds.budget.planner import plan as plan_layout_given
from chinchilla_ds.budget.report import format_plan
from chinchilla_ds.budget.speed.devices import get_device
from chinchilla_ds.cli.arguments import (
    budget_flags,
    choice,
    config_flag,
    flag,
    layout_flags,
    model_flags,
    path,
    quantity,
    run_config,
    share,
    whole,
)
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.files import write_text
from chinchilla_ds.run_plan import REPORT, Offload, RunPlan
from chinchilla_ds.structured import parse_json

COMMAND = Command(
    name="plan",
    group="plan",
    summary="turn FLOPs or GPU-hours into a model, a batch and a layout that fits",
    examples=(
        "chinchilla-ds plan --flops 1e21",
        "chinchilla-ds plan --gpu-hours 5000 --gpus 64 --gpu h100 --out plan.json",
        "chinchilla-ds plan --flops 1e21 --law law.json        # your own law, by chinchilla-ds fit",
    ),
)

_OWN = ("gpu_hours", "mfu", "gpus", "gpu", "gpus_per_node", "hardware", "json", "out")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    config_flag(parser)
    budget = parser.add_argument_group("what to spend, or what to get for it")
    budget_flags(budget)
    flag(budget, "gpu-hours", quantity("GPU-hours"), "budget as time: devices x hours of --gpu")
    flag(budget, "mfu", share, "share of the peak that --gpu-hours are counted at, 0.4 or 40%% (default: as planned)")
    cluster = parser.add_argument_group("cluster")
    flag(cluster, "gpus", whole, "devices (default 1)")
    flag(
        cluster,
        "gpu",
        str,
        "device: a100, h100, h200, b200, b300, gb300, l40s, mi325x, ..., one in --hardware, or module:object",
    )
    flag(cluster, "gpus-per-node", whole, "devices joined by the fast link (default: by device)")
    flag(cluster, "hardware", path, "JSON file of devices to add", metavar="FILE")
    model_flags(parser.add_argument_group("model and optimizer"))
    layout = parser.add_argument_group("parallel layout (default: the fastest that fits; a flag holds its part fixed)")
    layout_flags(layout)
    flag(layout, "zero-stage", int, "ZeRO stage", choices=(0, 1, 2, 3), metavar="0|1|2|3")
    for name in ("offload-optimizer", "offload-param"):
        flag(layout, name, choice(Offload), "where it lives when not in use", metavar="none|cpu|nvme")
    data = parser.add_argument_group("data")
    flag(data, "data", path, "prepared corpus: its vocabulary and unique tokens are planned with", metavar="FOLDER")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the plan as JSON")
    flag(output, "out", path, "write the plan's JSON to a file", metavar="FILE")


def run(arguments: argparse.Namespace) -> str:
    """Make the plan; return the text to print."""
    values = vars(arguments)
    own = {name: values.pop(name) for name in _OWN if name in values}
    corpus = values.pop("data", None)
    config, explicit = run_config(values)
    if corpus is not None:
        config = _of_corpus(config, corpus)
    if problems := _combination_problems(own, config):
        raise ConfigError(problems)
    made = _plan(config, own, explicit=explicit)
    plan = made.plan if isinstance(made, ClusterPlan) else made
    text = _json(plan, made)
    if "out" in own:
        write_text(own["out"], text=text)
    return text if "json" in own else format_plan(plan, search=made.search if isinstance(made, ClusterPlan) else None)


def _of_corpus(config: RunConfig, folder: Path) -> RunConfig:
    """Return the config with the prepared corpus's vocabulary and unique tokens, unless it says its own."""
    from chinchilla_ds.runs.corpus import corpus_data, with_prepared_corpus

    return with_prepared_corpus(dataclasses.replace(config, data=corpus_data(folder)))


def _combination_problems(own: dict[str, Any], config: RunConfig) -> list[str]:
    problems = []
    if "gpu_hours" in own and config.compute_budget_flops is not None:
        problems.append("--flops and --gpu-hours are both budgets: give one of them")
    if "gpu_hours" in own and "gpu" not in own:
        problems.append("--gpu-hours needs --gpu: hours of what? For example: --gpu h100")
    if "mfu" in own and "gpu_hours" not in own:
        problems.append("--mfu turns --gpu-hours into FLOPs and has no effect without them: drop it, or give both")
    if not 0 < own.get("mfu", 1) <= 1:
        meant = f"{own['mfu']:g}%" if 2 <= own["mfu"] <= 100 else "1"
        problems.append(f"--mfu ({own['mfu']:g}) is a share of the peak: above 0 and at most 1; nearest: {meant}")
    if "gpus_per_node" in own and "gpu" not in own:
        problems.append("--gpus-per-node has no effect without --gpu: name the device too, or drop it")
    return problems


def _plan(config: RunConfig, own: dict[str, Any], *, explicit: frozenset[str]) -> ClusterPlan | RunPlan:
    world_size = own.get("gpus", 1)
    if "gpu" not in own:
        return plan_layout_given(config, world_size=world_size, device="cuda")
    device = get_device(own["gpu"], hardware=own.get("hardware"))
    if device.memory_bytes is None:  # nothing to fit: the layout is as given
        return plan_layout_given(config, world_size=world_size, device=device.kind)
    return plan_on_devices(
        config,
        gpu=own["gpu"],
        world_size=world_size,
        devices_per_node=own.get("gpus_per_node"),
        hardware=own.get("hardware"),
        gpu_hours=own.get("gpu_hours"),
        mfu=own.get("mfu"),
        explicit=explicit,
    )


def _json(plan: RunPlan, made: ClusterPlan | RunPlan) -> str:
    """Return the plan's JSON; it feeds `launchers/pretrain.py --plan`, which skips the report."""
    data = parse_json(plan.to_json(), where="the plan")
    data[REPORT] = {"hyperparameters": _suggestions(plan)}
    if isinstance(made, ClusterPlan):
        search = made.search
        data[REPORT] |= {
            "layouts_considered": search.num_considered,
            "layouts_legal": search.num_legal,
            "layouts_fitting": search.num_fitting,
            "runners_up": [dataclasses.asdict(runner_up) for runner_up in search.runners_up],
            "rejected": [dataclasses.asdict(group) for group in search.rejected],
        }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _suggestions(plan: RunPlan) -> dict[str, list[dict[str, Any]]]:
    """Return what is used, marked where no rule was fitted on such a run, and what published rules give."""
    suggested = {
        "learning_rate": learning_rates(shape=plan.shape, num_tokens=plan.num_tokens),
        "batch_tokens": batch_sizes_tokens(shape=plan.shape, num_tokens=plan.num_tokens),
        "weight_decay": weight_decays(
            num_params=plan.num_params,
            num_tokens=plan.num_tokens,
            batch_tokens=plan.tokens_per_iter,
            learning_rate=plan.optimizer.learning_rate,
        ),
    }
    sizes = Sizes.of(plan.shape, num_tokens=plan.num_tokens)
    by_rules = sizes.in_step_law or sizes.in_recipes
    used = {
        "learning_rate": (plan.optimizer.learning_rate, by_rules),
        "batch_tokens": (float(plan.tokens_per_iter), by_rules),
        "weight_decay": (plan.optimizer.weight_decay, within(plan.num_params, POWER_LINES_PARAMS)),
    }
    first = {
        name: Suggestion(name="used", value=value, source="the plan", in_range=in_range)
        for name, (value, in_range) in used.items()
    }
    return {
        name: [dataclasses.asdict(suggestion) for suggestion in (first[name], *laws)]
        for name, laws in suggested.items()
    }
