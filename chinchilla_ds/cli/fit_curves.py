"""`chinchilla-ds fit-curves`: a law of the whole loss curve from logs of runs, and the curves of other schedules."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from chinchilla_ds.cli.arguments import flag, path, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import DataError

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
        help="runs to fit: CSV with the columns step, lr, loss, [num_params], where FILE@25e6 gives the parameters; or "
        "the folder of a run",
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


def _lines(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Return the lines of a table: of a CSV file, or of the steps that a run's folder records."""
    from chinchilla_ds.budget.laws.curves.read import curve_lines

    return _steps_of_run(path) if path.is_dir() else curve_lines(path)


def _steps_of_run(folder: Path) -> Iterator[tuple[int, list[str]]]:
    from chinchilla_ds.runs.plan_file import read_plan
    from chinchilla_ds.runs.request import PLAN_NAME
    from chinchilla_ds.tracking.metrics_file import METRICS_FILE, read_metrics

    path, keys = folder / METRICS_FILE, ("learning_rate", "train/loss")
    if not path.is_file():
        raise DataError(f"{folder} is a folder without {METRICS_FILE}; give a CSV file, or the folder of a run")
    num_params = read_plan(folder / PLAN_NAME).num_params
    steps = {record.step: record.metrics for record in read_metrics(path) if record.metrics.keys() >= set(keys)}
    yield 1, ["step", "lr", "loss", "num_params"]
    for number, step in enumerate(sorted(steps), 2):
        yield number, [str(step), *(str(steps[step][key]) for key in keys), str(num_params)]


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
    report = analyse_curves(arguments.runs, predict=arguments.predict, warmup_steps=arguments.warmup, table=_lines)
    if arguments.picture is not None:
        write_curves_picture(report, arguments.picture)
    return json.dumps(curves_data(report), indent=2, allow_nan=False) if arguments.json else curves_text(report)
