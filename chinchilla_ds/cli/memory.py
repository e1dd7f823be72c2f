"""`chinchilla-ds memory`: what a plan needs per device, stage by stage."""

import argparse
import dataclasses
import json

from chinchilla_ds.budget.memory.peak import estimate_stages
from chinchilla_ds.budget.report import format_memory
from chinchilla_ds.cli.arguments import path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.runs.plan_file import read_plan

COMMAND = Command(
    name="memory",
    group="plan",
    summary="show what a plan needs per device, stage by stage",
    examples=("chinchilla-ds memory plan.json",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="plan.json that `chinchilla-ds plan --out` wrote")
    parser.add_argument("--json", action="store_true", help="print the bytes as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Return the table, or its data."""
    plan = read_plan(arguments.plan)
    stages = estimate_stages(
        shape=plan.shape,
        layout=plan.layout,
        batch=plan.batch,
        precision=plan.precision,
        device=plan.device,
        optimizer_states=len(plan.optimizer.states),
    )
    if arguments.json:
        fullest = max(stages, key=lambda stage: stage.total)
        data = {"memory_bytes": dataclasses.asdict(fullest), "stages": [dataclasses.asdict(stage) for stage in stages]}
        return json.dumps(data, indent=2)
    return format_memory(plan, stages=stages)
