"""Entry point of `chinchilla-ds pretrain` and `launchers/pretrain.py`: read the command line, train, exit."""

from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from chinchilla_ds.cli.arguments import parse, training_flags
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.processes.endings import exit_process
from chinchilla_ds.processes.output import outlast_readers
from chinchilla_ds.runs.train import train_and_end

COMMAND = Command(
    name="pretrain",
    group="train",
    summary="plan a run, train it, and compare the result with the plan",
    examples=(
        "chinchilla-ds pretrain --ds_config zero3 --dry-run                      # plan and check, then stop",
        "chinchilla-ds pretrain --ds_config zero3 --data corpus/ --flops 1e11 --run-name first",
        "chinchilla-ds pretrain --config run.yaml --seed 2                       # flags in a file; flags win",
        "deepspeed --num_gpus 2 --module chinchilla_ds pretrain --ds_config zero1 --data corpus/ --flops 2e10",
    ),
)

add_flags = training_flags


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main`, and exit the process with its exit code."""
    outlast_readers()
    exit_process(partial(main, argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for a user's error, 85 stopped on request; docs/faults.md has them all."""
    return train_and_end(lambda: parse(argv))


if __name__ == "__main__":
    run()
