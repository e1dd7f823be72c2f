"""The flags of launchers/pretrain.py, and the RunConfig that they make."""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from chinchilla_ds.config import DataConfig, LayoutConfig, RunConfig
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.plan import Decay, Precision, Recompute
from chinchilla_ds.units import parse_quantity

_HELP_COLUMNS = 120
_HELP_FLAG_COLUMNS = 48
_LAYOUT_FIELDS = {field.name for field in dataclasses.fields(LayoutConfig)}
_DATA_FIELDS = {field.name for field in dataclasses.fields(DataConfig)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """A parsed command line."""

    ds_config: Path
    plan: Path | None
    """A plan to run as it is, instead of making one."""
    config: RunConfig
    explicit: frozenset[str]
    """Names of the config fields that a flag has set."""


_Choice = TypeVar("_Choice", bound=StrEnum)


class _Help(argparse.HelpFormatter):
    """Flags on the left, what they do on the right, as far as the screen allows."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, _HELP_COLUMNS)
        super().__init__(prog, max_help_position=_HELP_FLAG_COLUMNS if columns > 100 else 24, width=columns - 2)


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise, with the flag that was probably meant in place of an unknown one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise ConfigError(message.removeprefix("argument "))
        known = [flag for action in self._actions for flag in action.option_strings]
        flags = [word.split("=")[0] for word in unknown.split() if word.startswith("--")]
        raise ConfigError(
            [f"{flag} is not a flag{did_you_mean(flag, known) or '; --help lists them'}" for flag in flags]
            or f"{unknown!r} belongs to no flag; --help lists them"
        )

    def print_help(self, file: Any = None) -> None:
        """Print the help once, not once per rank."""
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)


def parse(argv: Sequence[str] | None) -> Arguments:
    """Read the command line.

    Raises:
        ConfigError: an unknown flag or a value that is none.
    """
    values = vars(_parser().parse_args(argv))
    values.pop("local_rank", None)
    ds_config, plan = values.pop("ds_config"), values.pop("plan", None)
    paths = values.pop("data", None)
    data = {name: values.pop(name) for name in list(values) if name in _DATA_FIELDS}
    if paths:
        data["paths"] = tuple(paths)
    layout = {name: values.pop(name) for name in list(values) if name in _LAYOUT_FIELDS}
    explicit = frozenset(values) | frozenset(layout)
    config = RunConfig(**values, layout=LayoutConfig(**layout), data=DataConfig(**data))
    return Arguments(ds_config=ds_config, plan=plan, config=config, explicit=explicit)


def _quantity(text: str) -> float:
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(text: str) -> int:
    value = _quantity(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def _limit(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else _quantity(text)


def _seed(text: str) -> int:
    return 0 if text.strip() == "0" else _whole(text)


def flag_of(field: str) -> str:
    """Return the flag that sets a config field."""
    return "--flops" if field == "compute_budget_flops" else "--" + field.replace("_", "-")


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("a path cannot be empty")
    return Path(text)


def _choice(kind: type[_Choice]) -> Callable[[str], _Choice]:
    """Return a parser of an enumeration's values that says which there are."""

    def read(text: str) -> _Choice:
        values = [choice.value for choice in kind]
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(values)}{did_you_mean(text, values)}")
        return kind(text)

    return read


def _parser() -> _Parser:
    parser = _Parser(
        prog="pretrain.py",
        usage="deepspeed [--num_gpus RANKS] launchers/pretrain.py --ds_config FILE [flags]",
        formatter_class=_Help,
        description="Plan a compute-optimal decoder for a budget, train it on DeepSpeed, compare it with the plan.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--ds_config", "--ds-config", type=_path, required=True, metavar="FILE", help="DeepSpeed JSON")
    parser.add_argument("--plan", type=_path, metavar="FILE", help="run this plan.json instead of making a plan")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    _budget_flags(parser.add_argument_group("budget and model"))
    _data_flags(parser.add_argument_group("data and output"))
    _layout_flags(parser.add_argument_group("parallel layout (the ds_config's `chinchilla_ds` section says the same)"))
    return parser


_Group = Any  # argparse._ArgumentGroup


_METAVARS = {_whole: "N", _seed: "N", _quantity: "X", _limit: "X", str: "NAME"}


def _flag(group: _Group, name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
    group.add_argument(f"--{name}", type=kind, help=text, **({"metavar": _METAVARS.get(kind)} | more))


def _names(kind: type[StrEnum]) -> str:
    return "|".join(choice.value for choice in kind)


def _budget_flags(group: _Group) -> None:
    defaults = RunConfig()
    _flag(
        group,
        "flops",
        _quantity,
        f"compute budget, model FLOPs forward and backward (default {defaults.compute_budget_flops:g})",
        dest="compute_budget_flops",
    )
    _flag(group, "law", str, f"scaling law (default {defaults.law})")
    _flag(group, "seq-length", _whole, f"tokens per training sequence (default {defaults.seq_length})")
    _flag(group, "vocab-size", _whole, "tokenizer pieces (default: by budget)")
    group.add_argument("--tied-embeddings", action=argparse.BooleanOptionalAction, help="share input and output tables")
    _flag(group, "global-batch-size", _whole, "sequences per optimizer step (default: by budget)")
    _flag(group, "micro-batch-size", _whole, "sequences per forward pass and rank (default: by device)")
    _flag(group, "learning-rate", _quantity, "peak learning rate (default: by size and tokens)")
    _flag(group, "gradient-clipping", _limit, "largest gradient norm, 0 for none (default 1.0)")
    _flag(group, "decay", _choice(Decay), "learning-rate decay after warm-up (default cosine)", metavar=_names(Decay))
    _flag(group, "precision", _choice(Precision), "default bf16 on GPUs, fp32 on CPUs", metavar=_names(Precision))
    _flag(group, "seed", _seed, f"weights, data order, tokenizer sample (default {defaults.seed})")


def _data_flags(group: _Group) -> None:
    defaults = DataConfig()
    group.add_argument(
        "--data",
        nargs="+",
        type=_path,
        metavar="PATH",
        help="text, JSONL or Parquet files and folders of them (default: this Python's standard library source)",
    )
    _flag(group, "text-field", str, f"column that holds the text (default {defaults.text_field})")
    _flag(group, "held-out-fraction", _quantity, f"share kept out of training (default {defaults.held_out_fraction})")
    _flag(group, "max-epochs", _quantity, f"how often the corpus may be read (default {defaults.max_epochs:g})")
    _flag(group, "eval-interval-tokens", _whole, "trained tokens between evaluations (default: ten in a run)")
    _flag(group, "output", _path, "folder for runs, prepared data and mlflow.db (default runs)", metavar="FOLDER")


def _layout_flags(group: _Group) -> None:
    _flag(group, "tensor-model-parallel-size", _whole, "ranks that share every matrix")
    _flag(group, "pipeline-model-parallel-size", _whole, "ranks that share the layers")
    _flag(group, "virtual-pipeline-model-parallel-size", _whole, "model chunks per pipeline stage")
    group.add_argument(
        "--sequence-parallel", action=argparse.BooleanOptionalAction, help="split norms over the tensor-parallel ranks"
    )
    _flag(group, "recompute", _choice(Recompute), "activation checkpointing", metavar=_names(Recompute))
