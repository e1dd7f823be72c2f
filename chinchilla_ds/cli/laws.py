"""`chinchilla-ds laws`: what published laws say of a budget, and what training a smaller model longer costs."""

import argparse
import dataclasses
import json
from collections.abc import Iterator

from chinchilla_ds.budget.laws.forms import MAX_EXTRAPOLATION, SurfaceLaw
from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, LAWS, LawRow, compare_laws, get_law
from chinchilla_ds.budget.laws.overtraining import OvertrainingRow, overtraining_curve
from chinchilla_ds.cli.arguments import flag, quantity
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.units import format_count, format_flops

COMMAND = Command(
    name="laws",
    group="plan",
    summary="compare published laws at a budget",
    examples=("chinchilla-ds laws --flops 1e21",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flag(parser, "flops", quantity("FLOPs"), "compute budget", required=True)
    flag(parser, "law", str, f"law of the over-training curve (default {DEFAULT_LAW})", default=DEFAULT_LAW)
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Return the tables, or their data."""
    law = get_law(arguments.law)
    if not isinstance(law, SurfaceLaw):
        surfaces = ", ".join(name for name, known in LAWS.items() if isinstance(known, SurfaceLaw))
        raise ConfigError(
            f"--law {law.name} predicts no loss, so it has no over-training curve; those that do: {surfaces}"
        )
    laws = compare_laws(compute_budget_flops=arguments.flops)
    curve = overtraining_curve(law=law, compute_budget_flops=arguments.flops)
    if arguments.json:
        data = {
            "flops": arguments.flops,
            "laws": [dataclasses.asdict(row) for row in laws],
            "overtraining": {"law": law.name, "rows": [dataclasses.asdict(row) for row in curve]},
        }
        return json.dumps(data, indent=2, allow_nan=False)
    return "\n".join(_lines(arguments.flops, law, laws=laws, curve=curve))


def _lines(
    flops: float, law: SurfaceLaw, *, laws: tuple[LawRow, ...], curve: tuple[OvertrainingRow, ...]
) -> Iterator[str]:
    yield f"{format_flops(flops)}, with C = 6 N D"
    yield ""
    yield f"{'law':<26}{'N':>8}{'D':>8}{'D / N':>8}{'loss':>8}  {'N counts':<18}budget against the fitted range"
    for best in laws:
        loss = "-" if best.loss is None else f"{best.loss:.3f}"
        counts = f"{format_count(best.num_params):>8}{format_count(best.num_tokens):>8}{best.tokens_per_param:>8.3g}"
        yield f"{best.name:<26}{counts}{loss:>8}  {best.params_convention:<18}{_range(best.extrapolation)}"
    yield "Losses are nats per token of each law's own tokenizer and text: they do not compare between rows."
    yield ""
    yield f"Smaller and longer, by {law.name}:"
    heads = (
        f"{'N':>8}{'of N*':>8}{'D at equal loss':>18}{'compute':>10}{'D at equal FLOPs':>19}{'loss':>8}{'change':>9}"
    )
    yield heads + (f"{'80% interval':>18}" if any(row.loss_interval for row in curve) else "")
    for row in curve:
        equal = "never" if row.tokens_at_equal_loss is None else format_count(row.tokens_at_equal_loss)
        ratio = "-" if row.compute_ratio is None else f"x {row.compute_ratio:.3g}"
        interval = "" if row.loss_interval is None else "{:>9.3f} to {:.3f}".format(*row.loss_interval)
        yield (
            f"{format_count(row.num_params):>8}{row.size_factor:>8.3g}{equal:>18}{ratio:>10}"
            f"{format_count(row.tokens_at_equal_compute):>19}{row.loss_at_equal_compute:>8.3f}{row.loss_increase:>+9.4f}"
            f"{interval}"
        )


def _range(times: float) -> str:
    if times <= 1:
        return "inside"
    return f"{times:.3g} times outside" + (" (a rule of thumb only)" if times > MAX_EXTRAPOLATION else "")
