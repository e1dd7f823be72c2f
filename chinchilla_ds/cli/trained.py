"""Flags of the commands that run a trained model, and the ranks that they run on."""

import argparse
from typing import TYPE_CHECKING

from chinchilla_ds.cli.arguments import choice, flag, path, whole
from chinchilla_ds.run_plan import Precision

if TYPE_CHECKING:
    from chinchilla_ds.inference.ranks import ModelRanks


def model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the run, and the flags for the precision and the layout of its model."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder (its newest checkpoint), or a checkpoint")
    names = "|".join(precision.value for precision in Precision)
    flag(parser, "dtype", choice(Precision), "default: fp32 on CPUs, the precision of training on GPUs", metavar=names)
    for name, text in (
        ("tensor", "ranks that each matrix is split over"),
        ("pipeline", "ranks that the layers are divided among"),
    ):
        flag(parser, f"{name}-model-parallel-size", whole, f"{text}, started by torchrun (default 1)", default=1)


def ranks_of(arguments: argparse.Namespace) -> "ModelRanks":
    """Return this rank's place in the layout that the flags request."""
    from chinchilla_ds.inference.ranks import join_ranks

    return join_ranks(
        tensor_model_parallel_size=arguments.tensor_model_parallel_size,
        pipeline_model_parallel_size=arguments.pipeline_model_parallel_size,
    )
