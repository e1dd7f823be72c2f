"""Measure layout parity and write the table of docs/verification.md.

python -m tests.parity.report                      the layouts of `make test`
python -m tests.parity.report --all                those of `make test-slow` too
python -m tests.parity.report --write docs/verification.md
"""

import argparse
import datetime
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from chinchilla_ds.run_plan import Precision
from tests.parity.harness import difference, reference, trained
from tests.parity.layouts import Case, bf16_cases, core_cases, more_cases

BEGIN, END = "<!-- layout parity: begin -->", "<!-- layout parity: end -->"
Row = tuple[str, float, float, float]


def measure(case: Case, precision: Precision) -> Row:
    """Return the case's name and its largest relative differences from the reference."""
    plan, fp32_plan = case.bf16_plans() if precision is Precision.BF16 else (case.plan(), case.plan())
    started = time.perf_counter()
    found = difference(trained(plan), reference(fp32_plan), plan)
    seconds = time.perf_counter() - started
    sys.stderr.write(
        f"{precision} {case}: loss {found.loss:.1e}, gradient norm {found.grad_norm:.1e}, weights {found.weights:.1e} "
        f"({seconds:.1f} s)\n"
    )
    return f"{precision} {case}", found.loss, found.grad_norm, found.weights


def controls() -> list[Row]:
    """Return how far apart runs are that must differ."""
    case = Case(accumulation=4)
    plan, rows = case.plan(), []
    for name, change in {
        "another seed": {"seed": 4321},
        "learning rate 2 % lower": {"learning_rate": 0.98 * plan.optimizer.learning_rate},
        "no clipping": {"gradient_clipping": 100.0},
        "no weight decay": {"weight_decay": 0.0},
    }.items():
        found = difference(reference(case.plan(**change)), reference(plan), plan)
        rows.append((f"control: {name}", found.loss, found.grad_norm, found.weights))
    return rows


def table(rows: list[Row]) -> str:
    """Return rows as markdown."""
    lines = ["| layout | loss | gradient norm | weights |", "|---|---|---|---|"]
    lines += [f"| {name} | {loss:.1e} | {norm:.1e} | {weights:.1e} |" for name, loss, norm, weights in rows]
    return "\n".join(lines)


def worst(rows: list[Row], name: str) -> Row:
    """Return the largest of each column."""
    return (f"{name}: largest of {len(rows)}", *(max(row[column] for row in rows) for column in (1, 2, 3)))  # type: ignore[return-value]


def report(*, everything: bool) -> str:
    """Run and return the section's text."""
    fp32 = core_cases() + (more_cases() if everything else [])
    bf16 = bf16_cases() if everything else [case for case in bf16_cases() if case.accumulation == 4]
    measured = {
        "fp32": [measure(case, Precision.FP32) for case in fp32],
        "bf16": [measure(case, Precision.BF16) for case in bf16],
    }
    summary = [worst(rows, name) for name, rows in measured.items()] + controls()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "megatron-core"))
    command = "python -m tests.parity.report" + (" --all" if everything else "")
    head = (
        f"`{command}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {packages}, Python {platform.python_version()}, "
        f"CPU, {os.cpu_count()} cores."
    )
    every = table([row for rows in measured.values() for row in rows])
    folded = f"<details><summary>Every run</summary>\n\n{every}\n\n</details>"
    return f"{head}\n\n{table(summary)}\n\n{folded}"


def main() -> None:
    """Print the section, or write it between its markers."""
    parser = argparse.ArgumentParser(description="measure layout parity")
    parser.add_argument("--all", action="store_true", help="every combination of the slow tests")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section between the markers of FILE")
    arguments = parser.parse_args()
    text = report(everything=arguments.all)
    if arguments.write is None:
        sys.stdout.write(text + "\n")
        return
    before, _, rest = arguments.write.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main()
