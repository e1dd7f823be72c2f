"""`chinchilla-ds fit-curves`: a law of the whole loss curve from logs of runs, and the curves of other schedules."""

import argparse
import json

from chinchilla_ds.cli.arguments import flag, path, whole
from chinchilla_ds.cli.commands import Command

COMMAND = Command(
    name="fit-curves",
    group="plan",
    summary="fit a law of whole loss curves, and predict those of other schedules",
    examples=(
        "chinchilla-ds fit-curves cosine.csv constant.csv --warmup 200 --predict wsd.csv --picture curves.png",
        "chinchilla-ds fit-curves small.csv@25e6 large.csv@100e6 --predict next.csv@400e6 --json",
    ),
    packages=(
        "numpy",
        "scipy",
        "matplotlib",
    ),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="FILE[@N]",
        help="runs to fit: CSV with the columns step, lr, loss, [num_params]; FILE@25e6 gives a run's parameters",
    )
    parser.add_argument(
        "--predict",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[@N]",
        help="runs to predict from their step and lr; loss, if it is there, is compared",
    )
    flag(
        parser,
        "warmup",
        _steps,
        "steps over which the rate rises from 0 to the first row's (default: all before that row)",
        metavar="STEPS",
    )
    output = parser.add_argument_group("output")
    flag(output, "picture", path, "write measured and predicted curves (.png, .svg or .pdf)", metavar="FILE")
    output.add_argument("--json", action="store_true", help="print the result as JSON")


def _steps(text: str) -> int:
    return 0 if text.strip() == "0" else whole(text)


def run(arguments: argparse.Namespace) -> str:
    """Fit and predict; return the text to print.

    Raises:
        ConfigError: the picture's name has no known suffix.
        DataError: files that nothing can be fitted to; the problems of all of them.
        OutputError: the picture cannot be written.
    """
    from chinchilla_ds.budget.laws.curves.analysis import analyse_curves
    from chinchilla_ds.budget.laws.curves.picture import write_curves_picture
    from chinchilla_ds.budget.laws.curves.screen import curves_data, curves_text
    from chinchilla_ds.budget.laws.fitting.picture import check_picture_name

    if arguments.picture is not None:
        check_picture_name(arguments.picture)
    report = analyse_curves(arguments.runs, predict=arguments.predict, warmup_steps=arguments.warmup)
    if arguments.picture is not None:
        write_curves_picture(report, arguments.picture)
    return json.dumps(curves_data(report), indent=2, allow_nan=False) if arguments.json else curves_text(report)
