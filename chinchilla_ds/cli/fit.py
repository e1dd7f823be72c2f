"""`chinchilla-ds fit`: a scaling law from a table of runs, as a report, JSON, a picture, and a law to plan with."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import flag, path, quantity, whole
from chinchilla_ds.cli.commands import Command, parser_of
from chinchilla_ds.cli.fit_runs import add_run_flags, log_hold_out, read_fit_runs, run_flag_problems, source_name
from chinchilla_ds.cli.flags import with_flags
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.files import write_text

if TYPE_CHECKING:
    from chinchilla_ds.budget.laws.fitting.result import FitReport

COMMAND = Command(
    name="fit",
    group="plan",
    summary="fit a scaling law to a table of runs",
    examples=(
        "chinchilla-ds fit runs.csv --out law.json --picture fit.png",
        "chinchilla-ds fit runs.csv --approach all --flops 1e21",
    ),
    packages=(
        "numpy",
        "scipy",
        "matplotlib",
    ),
)

MAX_RESAMPLES = 100_000
DEFAULT_DRAWS = 1000
DEFAULT_SEED = 42
_OWN_OF_SURFACE = ("form", "prior", "objective", "delta", "out", "predict", "hold_out")
_OWN_OF_NO_PRIOR = ("objective", "delta", "bootstrap")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    add_run_flags(parser)
    how = parser.add_argument_group("how to fit")
    flag(
        how,
        "approach",
        str,
        "1 best runs, 2 IsoFLOP parabolas, 3 loss surface (default 3)",
        **_named(_APPROACHES),
    )
    flag(how, "form", str, "k = 1, or k fitted (default skaling; auto is the same with weak priors)", **_named(_FORMS))
    flag(how, "prior", str, "weak priors, or none and a bootstrap (default weak)", **_named(_PRIORS))
    flag(how, "objective", str, "on log loss, with --prior none (default huber)", **_named(_OBJECTIVES))
    flag(how, "delta", quantity(None), "where Huber's loss turns linear, with --prior none (default 1e-3)")
    flag(how, "outliers", str, "runs that lie far off (default keep)", **_named(_OUTLIERS))
    draws = f"resampled tables, with --prior none or approaches 1 and 2 (default {DEFAULT_DRAWS}; 0 for none)"
    flag(how, "bootstrap", _count, draws, metavar="N")
    flag(how, "seed", _count, f"of the draws (default {DEFAULT_SEED})", metavar="N")
    output = parser.add_argument_group("output")
    flag(output, "flops", quantity("FLOPs"), "budget to give the best N and D for")
    asked = "predict the loss of N parameters on D tokens; may be repeated"
    flag(output, "predict", _model, asked, metavar="N,D", action="append")
    factor = "also fit the runs below a quarter of the largest compute, and predict the others"
    flag(output, "hold-out", _factor, factor, metavar="4x")
    flag(output, "picture", path, "write IsoFLOP profiles and the frontier (.png, .svg or .pdf)", metavar="FILE")
    flag(output, "out", path, "write the law, for chinchilla-ds plan --law FILE", metavar="FILE")
    flag(output, "params-convention", str, "what N counts, for --out (default total)", **_named(_CONVENTIONS))
    output.add_argument("--json", action="store_true", default=False, help="print the result as JSON")


_APPROACHES = ("1", "2", "3", "all")
_OUTLIERS = ("keep", "drop")
_FORMS = ("additive", "skaling", "auto")
_PRIORS = ("weak", "none")
_OBJECTIVES = ("huber", "lad", "squared")
_CONVENTIONS = ("total", "non_embedding")


def _named(choices: tuple[str, ...]) -> dict[str, object]:
    return {"choices": choices, "metavar": "|".join(choices)}


def _count(text: str) -> int:
    return 0 if text.strip() == "0" else whole(text)


def _model(text: str) -> tuple[float, float]:
    """Return N and D of `7e9,1.4e11` or `7B,140B`."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,D: parameters and tokens, such as 7B,140B")
    from chinchilla_ds.budget.laws.fitting.row_checks import SMALLEST_COUNT

    counts = quantity("parameters")(parts[0]), quantity("tokens")(parts[1])
    for part, count in zip(parts, counts, strict=True):
        if count < SMALLEST_COUNT:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} of {text!r} is below {SMALLEST_COUNT:g}; is it in millions or billions? Give plain "
                "numbers (7e9) or a suffix (7B)"
            )
    return counts


def _factor(text: str) -> float:
    try:
        factor = quantity(None)(text.strip().lower().removesuffix("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a factor such as 4x") from None
    if factor <= 1:
        rule = "4x fits the runs below a quarter of the largest compute"
        raise argparse.ArgumentTypeError(f"{text!r} must be above 1: {rule}")
    return factor


def run(arguments: argparse.Namespace) -> str:
    """Fit; return the text to print.

    Raises:
        ConfigError: flags that contradict one another.
        DataError: no table, or one that nothing can be fitted to.
        OutputError: a file cannot be written.
    """
    values = vars(arguments)
    if problems := _flag_problems(values):
        raise ConfigError(problems)
    from chinchilla_ds.budget.laws.fitting.picture import check_picture_name, write_picture
    from chinchilla_ds.budget.laws.fitting.result import fit_data, law_text
    from chinchilla_ds.budget.laws.fitting.screen import fit_text
    from chinchilla_ds.budget.laws.lookup import ParamsConvention

    if "picture" in values:
        check_picture_name(values["picture"])
    report = _report(values)
    if "out" in values:
        convention = ParamsConvention(values.get("params_convention", "total"))
        write_text(values["out"], text=law_text(report, name=values["out"].stem, params_convention=convention))
    if "picture" in values:
        write_picture(report, values["picture"])
    data = fit_data(report)
    if data["held_out"] is not None:
        log_hold_out(values, data["held_out"])
    return json.dumps(data, indent=2, allow_nan=False) if values.get("json") else fit_text(report)


def _report(values: Mapping[str, Any]) -> "FitReport":
    """Read the runs and fit them."""
    from chinchilla_ds.budget.laws.fitting.analysis import ALL_APPROACHES, FitRequest, analyse
    from chinchilla_ds.budget.laws.fitting.surface import DEFAULT_DELTA, FitLoss, Form, Prior

    approach = values.get("approach", "3")
    request = FitRequest(
        approaches=ALL_APPROACHES if approach == "all" else (int(approach),),
        form=Form(values.get("form", "skaling")),
        prior=Prior(values.get("prior", "weak")),
        objective=FitLoss(values.get("objective", "huber")),
        delta=values.get("delta", DEFAULT_DELTA),
        leave_out_outliers=values.get("outliers") == "drop",
        num_draws=values.get("bootstrap", DEFAULT_DRAWS),
        seed=values.get("seed", DEFAULT_SEED),
        compute_budget_flops=values.get("flops"),
        points=tuple(values.get("predict", ())),
        hold_out=values.get("hold_out"),
    )
    runs = read_fit_runs(values, min_rows=request.min_rows)
    source = source_name(str(values["runs"]))
    with _status(f"fitting, with {request.num_draws} draws" if request.prior is Prior.NONE else "fitting"):
        report = analyse(runs.table, source=source, request=request)
    if report.law is None and "out" in values:
        raise DataError(f"{source}: --out needs the surface of approach 3, which these runs do not identify")
    parser = parser_of("fit")
    warnings = (with_flags(warning, parser=parser) for warning in (*runs.notes, *report.warnings))
    return dataclasses.replace(report, warnings=tuple(warnings))


def _status(text: str) -> "contextlib.AbstractContextManager[object]":
    """Return a status indicator on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _flag_problems(values: Mapping[str, Any]) -> list[str]:
    """Return the flags that have no effect beside the others, or a value that cannot be."""
    problems = []
    approach = values.get("approach", "3")
    if approach in ("1", "2"):
        problems += [
            f"--{name.replace('_', '-')} belongs to approach 3 and has no effect on --approach {approach}: drop it"
            for name in _OWN_OF_SURFACE
            if name in values
        ]
    elif values.get("prior", "weak") == "weak":
        problems += [
            f"--{name} belongs to --prior none and has no effect on the default, whose draws come from the posterior: "
            "drop it, or add --prior none"
            for name in _OWN_OF_NO_PRIOR
            if name in values and not (name == "bootstrap" and approach == "all")
        ]
    elif values.get("bootstrap") == 0:
        problems += [
            f"--{name.replace('_', '-')} needs draws for its intervals: drop --bootstrap 0"
            for name in ("predict", "hold_out")
            if name in values
        ]
    if "delta" in values and values.get("objective", "huber") != "huber":
        problems.append(f"--delta belongs to huber and has no effect on --objective {values['objective']}: drop it")
    if values.get("bootstrap", 0) > MAX_RESAMPLES:
        problems.append(
            f"--bootstrap is {values['bootstrap']:,} resamples; at most {MAX_RESAMPLES:,}: percentiles "
            "settle at 1,000 to 4,000"
        )
    if "seed" in values and values.get("bootstrap") == 0:
        problems.append("--seed has no effect with --bootstrap 0: drop it")
    if "params_convention" in values and "out" not in values:
        problems.append("--params-convention has no effect without --out: drop it")
    return [*problems, *run_flag_problems(values)]
