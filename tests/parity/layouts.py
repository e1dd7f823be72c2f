"""Which layouts the parity tests run: those that the planner accepts on up to four ranks, and small covers of them.

A case is one choice for each feature. `core_cases` holds every ZeRO x TP x PP x DP layout and every pair of choices
that can go together; `more_cases` the plain matrix in full, and every triple of choices.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chinchilla_ds.errors import LayoutError
from chinchilla_ds.run_plan import Offload, Precision, Recompute, RunPlan
from tests.parity.harness import ACTIVE_CLIPPING, INACTIVE_CLIPPING, parity_plan

MAX_WORLD_SIZE = 4
BF16_LEARNING_RATE = 1e-3
"""A quarter of the fp32 cases': at 4e-3 one step of one batch amplifies rounding, see docs/verification.md."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One choice for each feature; the first of each is the plain one."""

    zero: int = 0
    tp: int = 1
    pp: int = 1
    dp: int = 1
    accumulation: int = 1
    recompute: str = "none"
    sequence_parallel: bool = False
    virtual: int = 1
    offload: str = "none"
    clips: bool = True
    tied: bool = False
    qk_norm: bool = False
    layers: int = 4

    def __str__(self) -> str:
        """Name the layout, and after it what is not plain."""
        extras = [
            f"acc{self.accumulation}",
            f"recompute_{self.recompute}" if self.recompute != "none" else "",
            "sp" if self.sequence_parallel else "",
            f"vpp{self.virtual}" if self.virtual > 1 else "",
            f"offload_{self.offload}" if self.offload != "none" else "",
            "" if self.clips else "unclipped",
            "tied" if self.tied else "",
            "qk_norm" if self.qk_norm else "",
            f"{self.layers}_layers" if self.layers != 4 else "",
        ]
        return "-".join([self.layout, *filter(None, extras)])

    def bf16_plans(self) -> tuple[RunPlan, RunPlan]:
        """Return the case's plan in BF16, and in fp32 for the reference."""
        bf16, fp32 = (
            self.plan(precision=p, learning_rate=BF16_LEARNING_RATE) for p in (Precision.BF16, Precision.FP32)
        )
        return bf16, fp32

    @property
    def layout(self) -> str:
        """Return ZeRO x TP x PP x DP alone."""
        return f"zero{self.zero}-tp{self.tp}-pp{self.pp}-dp{self.dp}"

    def plan(self, **changes: object) -> RunPlan:
        """Return the case's plan; `changes` are further arguments of `parity_plan`.

        Raises:
            LayoutError: the planner refuses it.
        """
        values: dict[str, object] = {
            "zero_stage": self.zero,
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "data_parallel_size": self.dp,
            "gradient_accumulation_steps": self.accumulation,
            "recompute": Recompute(self.recompute),
            "sequence_parallel": self.sequence_parallel,
            "virtual_pipeline_model_parallel_size": self.virtual,
            "offload_optimizer": Offload.NONE if self.offload == "none" else Offload.CPU,
            "offload_param": Offload.CPU if self.offload == "all" else Offload.NONE,
            "gradient_clipping": ACTIVE_CLIPPING if self.clips else INACTIVE_CLIPPING,
            "tied_embeddings": self.tied,
            "qk_norm": self.qk_norm,
            "num_layers": self.layers,
        }
        return parity_plan(**{**values, **changes})  # type: ignore[arg-type]


CHOICES = {
    "zero": (0, 1, 2, 3),
    "tp": (1, 2),
    "pp": (1, 2),
    "dp": (1, 2),
    "accumulation": (4, 1),
    "recompute": ("none", "selective", "full"),
    "sequence_parallel": (False, True),
    "virtual": (1, 2),
    "offload": ("none", "optimizer", "all"),
    "clips": (True, False),
    "tied": (False, True),
}


@functools.cache
def all_cases() -> list[Case]:
    """Return every combination of choices that the planner accepts."""
    combinations = (dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values()))
    return [case for case in (Case(**values) for values in combinations) if _is_accepted(case)]  # type: ignore[arg-type]


def core_cases() -> list[Case]:
    """Return few cases that hold every layout and every possible pair of choices."""
    return cover(all_cases(), strength=2)


def more_cases() -> list[Case]:
    """Return what `core_cases` leaves out of the plain matrix and of a cover of every possible triple of choices."""
    cases = all_cases()
    plain = [case for case in cases if case == _plain(case)]
    core = core_cases()
    return [case for case in dict.fromkeys([*plain, *cover(cases, strength=3)]) if case not in core]


def bf16_cases() -> list[Case]:
    """Return the plain matrix that the planner accepts in BF16."""
    names = ("zero", "tp", "pp", "dp", "accumulation")
    combinations = itertools.product(*(CHOICES[name] for name in names))
    cases = (Case(**dict(zip(names, values, strict=True))) for values in combinations)  # type: ignore[arg-type]
    return [case for case in cases if _is_accepted(case, precision=Precision.BF16)]


def _plain(case: Case) -> Case:
    return Case(
        zero=case.zero,
        tp=case.tp,
        pp=case.pp,
        dp=case.dp,
        accumulation=case.accumulation,
        recompute=case.recompute,
    )


def cover(cases: Iterable[Case], *, strength: int) -> list[Case]:
    """Return a greedy choice of `cases` that holds every layout and `strength`-tuple of choices of any of them."""
    open_ = {case: _tuples(case, strength) for case in cases}
    missing = set().union(*open_.values())
    chosen = []
    while missing:
        best = max(open_, key=lambda case: len(open_[case] & missing))  # the first of equals
        chosen.append(best)
        missing -= open_.pop(best)
    return chosen


def _tuples(case: Case, strength: int) -> set[object]:
    return {*itertools.combinations(_named(case), strength), case.layout}


def _named(case: Case) -> Iterator[tuple[str, object]]:
    return ((name, getattr(case, name)) for name in CHOICES)


def _is_accepted(case: Case, *, precision: Precision = Precision.FP32) -> bool:
    if case.tp * case.pp * case.dp > MAX_WORLD_SIZE:
        return False
    try:
        case.plan(precision=precision)
    except LayoutError:
        return False
    return True
