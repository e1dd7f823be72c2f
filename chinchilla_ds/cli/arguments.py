"""The flags of training and of `chinchilla-ds plan`, and the RunConfig that they set."""

import argparse
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from chinchilla_ds.budget.deepspeed_json.resolve import shipped_configs
from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW
from chinchilla_ds.cli.config_file import CONFIG_FLAG, ConfigFile, flags_of, take_config
from chinchilla_ds.cli.flags import with_training_flags
from chinchilla_ds.config import (
    DEFAULT_BUDGET_FLOPS,
    RUN_NAME,
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    LayoutConfig,
    OnSpike,
    RunConfig,
    SaveInterval,
)
from chinchilla_ds.distributed.launch import rank_of
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.plugins import PluginSpec, parse_spec
from chinchilla_ds.run_plan import DEFAULT_OBJECTIVE, Decay, Precision, Recompute
from chinchilla_ds.runs.command import TrainCommand
from chinchilla_ds.units import parse_quantity, parse_share

_NEGATIVE = re.compile(r"-[0-9.]")
_HELP_COLUMNS = 120
_HELP_FLAG_COLUMNS = 48
_LAYOUT_FIELDS = {field.name for field in dataclasses.fields(LayoutConfig)}
_DATA_FIELDS = {field.name for field in dataclasses.fields(DataConfig)}
_GUARD_FIELDS = {field.name for field in dataclasses.fields(GuardConfig)}
_CHECKPOINT_FIELDS = {field.name for field in dataclasses.fields(CheckpointConfig)}
_SAVE_EVERY = re.compile(r"(?P<amount>[0-9.eE+_]+ ?[KMBTkmbt]?)(?:(?P<time>[smh])|[- ]?(?P<unit>tokens|steps))")
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 4095
"""NAME_MAX and PATH_MAX of Linux."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


_Choice = TypeVar("_Choice", bound=StrEnum)


class Help(argparse.HelpFormatter):
    """Shows flags on the left and descriptions on the right, within the terminal's width."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, _HELP_COLUMNS)
        super().__init__(prog, max_help_position=_HELP_FLAG_COLUMNS if columns > 100 else 24, width=columns - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Keep examples unchanged; wrap all other text."""
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


_EXAMPLES = "examples:\n"


def examples_text(examples: Sequence[str]) -> str:
    """Return the examples at the end of a command's help."""
    return _EXAMPLES + "\n".join(f"  {example}" for example in examples)


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError instead of printing the usage and exiting."""

    config = ConfigFile()
    """The file that `--config` names, while its flags are parsed."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with `--flops -1e21` read as a value (argparse would see a flag), and with --config's flags."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if _NEGATIVE.match(word) and words and words[-1].startswith("--") and "=" not in words[-1]:
                words[-1] += f"={word}"
            else:
                words.append(word)
        self.config = ConfigFile()
        if any(CONFIG_FLAG in action.option_strings for action in self._actions):
            self.config, words = take_config(words, flags=flags_of(self))
        values = super().parse_args([*self.config.words, *words], namespace)
        vars(values).pop("config", None)
        return values

    def error(self, message: str) -> NoReturn:
        """Raise, with the flag that was probably meant in place of an unknown one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            problem = message.removeprefix("argument ")
            raise ConfigError(f"{self.config.place_of(problem)}{problem}")
        known = [name for action in self._actions for name in action.option_strings]
        flags = [word.split("=")[0] for word in unknown.split() if word.startswith("--")]
        raise ConfigError(
            [f"{name} is not a flag{did_you_mean(name, known) or '; --help lists them'}" for name in flags]
            or f"{unknown!r} belongs to no flag; --help lists them"
        )

    def print_help(self, file: Any = None) -> None:
        """Print the help once instead of once per rank."""
        if rank_of() == 0:
            super().print_help(file)


def parse(argv: Sequence[str] | None) -> TrainCommand:
    """Read the command line of launchers/pretrain.py.

    Raises:
        ConfigError: a flag is unknown, or a value is invalid.
    """
    values = vars(training_parser().parse_args(argv))
    values.pop("local_rank", None)
    ds_config, plan, dry_run = values.pop("ds_config"), values.pop("plan", None), values.pop("dry_run", False)
    data = {name: values.pop(name) for name in list(values) if name in _DATA_FIELDS}
    data |= {"paths": tuple(data["paths"])} if "paths" in data else {}
    if "callbacks" in values:
        values["callbacks"] = tuple(values["callbacks"])
    guards = {name: values.pop(name) for name in list(values) if name in _GUARD_FIELDS}
    saving = {name: values.pop(name) for name in list(values) if name in _CHECKPOINT_FIELDS}
    config, explicit = run_config(values, data=DataConfig(**data))
    config = dataclasses.replace(config, guards=GuardConfig(**guards), checkpoint=CheckpointConfig(**saving))
    explicit |= data.keys() | guards.keys() | saving.keys()
    return TrainCommand(
        ds_config=ds_config,
        plan=plan,
        config=config,
        explicit=explicit,
        words=with_training_flags,
        dry_run=dry_run,
    )


def run_config(values: dict[str, Any], /, *, data: DataConfig | None = None) -> tuple[RunConfig, frozenset[str]]:
    """Return the config that the given flags set, and the names of the fields that they set."""
    layout = {name: values[name] for name in values if name in _LAYOUT_FIELDS}
    rest = {name: values[name] for name in values if name not in _LAYOUT_FIELDS}
    config = RunConfig(**rest, layout=LayoutConfig(**layout), data=data or DataConfig())
    return config, frozenset(values)


def quantity(unit: str | None) -> Callable[[str], float]:
    """Return a parser of positive numbers, which may be followed by `unit`."""

    def read(text: str) -> float:
        try:
            return parse_quantity(text, unit=unit)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def share(text: str) -> float:
    """Return a share, such as 0.4 or 40%."""
    try:
        return parse_share(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_quantity = quantity(None)


def whole(text: str) -> int:
    """Return a positive whole number, such as 4, 2K or 1e9."""
    value = _quantity(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def save_interval(text: str) -> SaveInterval:
    """Return how often to save, from `90s`, `30m`, `2h`, `1B-tokens` or `500-steps`."""
    matched = _SAVE_EVERY.fullmatch(text.strip())
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an interval such as 30m, 2h, 1B-tokens or 500-steps")
    if matched["time"]:
        return SaveInterval(seconds=_quantity(matched["amount"]) * _SECONDS[matched["time"]])
    amount = whole(matched["amount"])
    return SaveInterval(tokens=amount) if matched["unit"] == "tokens" else SaveInterval(iters=amount)


def _zero_or_more(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else _quantity(text)


def _whole_or_0(text: str) -> int:
    return 0 if text.strip() == "0" else whole(text)


def plugin(text: str) -> PluginSpec:
    """Return the plugin that `NAME` or `module:object` names, with any number of `,key=value` after it."""
    try:
        return parse_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(text: str) -> Path:
    """Return a path that is not empty and that a file system accepts."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path cannot be empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} holds a NUL, which no path can")
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > _LONGEST_NAME_BYTES or len(os.fsencode(text)) > _LONGEST_PATH_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r}... is too long: names have at most {_LONGEST_NAME_BYTES} bytes, paths {_LONGEST_PATH_BYTES}"
        )
    return Path(text)


def choice(kind: type[_Choice]) -> Callable[[str], _Choice]:
    """Return a parser of an enumeration's values; its errors list them."""

    def read(text: str) -> _Choice:
        values = [member.value for member in kind]
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(values)}{did_you_mean(text, values)}")
        return kind(text)

    return read


def run_name(text: str) -> str:
    """Return a valid name of a run."""
    if not RUN_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a run's name: letters, digits, dots, dashes and underscores, at most 100, a letter or "
            "digit first"
        )
    return text


class _NamedOtherwise(argparse.Action):
    """Another name of --ds_config, used by DeepSpeed's own scripts, whose error names ours."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> NoReturn:
        raise argparse.ArgumentError(None, f"{option} is called --ds_config here: --ds_config {values or 'FILE'}")


def training_parser() -> Parser:
    """Return the parser of `chinchilla-ds pretrain` and launchers/pretrain.py."""
    from chinchilla_ds.cli.commands import COMMANDS

    command = "--ds_config NAME|FILE [flags]"
    parser = Parser(
        prog="chinchilla-ds pretrain",
        usage=f"chinchilla-ds pretrain {command}\n       deepspeed [--num_gpus RANKS] launchers/pretrain.py {command}",
        formatter_class=Help,
        description="Plan a compute-optimal decoder for a budget, train it, and compare its loss with the plan's.",
        epilog=examples_text(COMMANDS["pretrain"].examples),
        allow_abbrev=False,
    )
    training_flags(parser)
    return parser


def training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training."""
    parser.argument_default = argparse.SUPPRESS
    ds_config_flag(parser)
    parser.add_argument("--deepspeed_config", "--deepspeed", nargs="?", action=_NamedOtherwise, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=path, metavar="FILE", help="run this plan.json instead of making a plan")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    config_flag(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="plan, check text and ds_config, and stop; write nothing"
    )
    budget_flags(parser.add_argument_group(f"budget (default {DEFAULT_BUDGET_FLOPS:g} FLOPs)"))
    model_flags(parser.add_argument_group("model and optimizer"))
    _data_flags(parser.add_argument_group("data and output"))
    _checkpoint_flags(parser.add_argument_group("checkpoints"))
    _guard_flags(parser.add_argument_group("guards"))
    _plugin_flags(parser.add_argument_group("your own code (docs/add-a-callback.md)"))
    layout_flags(parser.add_argument_group("parallel layout (the ds_config's `chinchilla_ds` section says the same)"))


Group = Any  # argparse._ArgumentGroup


def ds_config_flag(group: Group) -> None:
    """Add `--ds_config`, as DeepSpeed's scripts spell it."""
    text = f"DeepSpeed JSON: a file, or the name of a shipped one: {', '.join(shipped_configs())}"
    group.add_argument("--ds_config", "--ds-config", type=path, required=True, metavar="NAME|FILE", help=text)


def config_flag(group: Group) -> None:
    """Add `--config`."""
    text = "YAML file with flags as keys, such as `flops: 1e21`; flags on the command line win"
    group.add_argument(CONFIG_FLAG, type=path, metavar="FILE", help=text)


_METAVARS = {whole: "N", _whole_or_0: "N", str: "NAME", run_name: "NAME"}


def flag(group: Group, name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
    """Add a flag with its parser, its help and a suitable placeholder.

    Args:
        group: The parser or group that receives the flag.
        name: Name of the flag, without dashes.
        kind: Parses a value.
        text: Help text.
        **more: Further arguments of `add_argument`.
    """
    group.add_argument(f"--{name}", type=kind, help=text, **({"metavar": _METAVARS.get(kind, "X")} | more))


def _names(kind: type[StrEnum]) -> str:
    return "|".join(choice.value for choice in kind)


def budget_flags(group: Group) -> None:
    """Add the flags for the budget, or for the size or training tokens to get."""
    budget = "model FLOPs forward and backward"
    flag(group, "flops", quantity("FLOPs"), f"compute budget, {budget}", dest="compute_budget_flops")
    flag(
        group,
        "params",
        quantity("parameters"),
        "model size instead of a budget, including embeddings",
        dest="num_params",
    )
    flag(group, "tokens", quantity("tokens"), "training tokens instead of a budget", dest="num_tokens")
    flag(group, "shape", str, "shape of a published decoder, such as llama-3-8b or chinchilla-70b")
    flag(
        group, "law", str, f"scaling law, a file of `chinchilla-ds fit --out`, or module:object (default {DEFAULT_LAW})"
    )
    flag(group, "unique-tokens", quantity("tokens"), "distinct tokens available; training on more repeats them")
    flag(
        group,
        "inference-tokens",
        quantity("tokens"),
        "tokens to serve after training: favours a smaller model, trained longer",
    )


def model_flags(group: Group) -> None:
    """Add the flags of model, batch and optimizer."""
    flag(group, "seq-length", whole, "tokens per training sequence (default: by budget)")
    flag(group, "vocab-size", whole, "tokenizer pieces (default: by the text, or by budget)")
    group.add_argument("--tied-embeddings", action=argparse.BooleanOptionalAction, help="share input and output tables")
    group.add_argument(
        "--qk-norm", action=argparse.BooleanOptionalAction, help="normalise the queries and keys of each head"
    )
    flag(group, "global-batch-size", whole, "sequences per optimizer step (default: by budget)")
    flag(group, "micro-batch-size", whole, "sequences per forward pass and rank (default: by device)")
    flag(group, "learning-rate", _quantity, "peak learning rate (default: by size and tokens)")
    text = "adamw, or your own module:function that returns an OptimizerSpec (default adamw)"
    flag(group, "optimizer", plugin, text, metavar="NAME[,key=value]")
    text = "decoupled weight decay of matrices (default: by size, tokens, batch and learning rate)"
    flag(group, "weight-decay", _zero_or_more, text)
    flag(group, "beta1", _zero_or_more, "decay rate of AdamW's first moment (default 0.9)")
    flag(group, "beta2", _zero_or_more, "decay rate of AdamW's second moment (default 0.95)")
    flag(group, "epsilon", _quantity, "term that AdamW adds to the root of its second moment (default 1e-8)")
    flag(group, "warmup-iters", _whole_or_0, "warm-up steps (default: by size, batch and length of the run)")
    text = f"objective, or your own module:Class (default {DEFAULT_OBJECTIVE}; docs/add-a-loss.md)"
    flag(group, "objective", plugin, text, metavar="NAME[,key=value]")
    flag(group, "gradient-clipping", _zero_or_more, "largest gradient norm, 0 for none (default 1.0)")
    flag(group, "decay", choice(Decay), "shape of the learning-rate decay (default cosine)", metavar=_names(Decay))
    flag(group, "precision", choice(Precision), "default: bf16 on GPUs, fp32 on CPUs", metavar=_names(Precision))
    group.add_argument("--document-mask", action=argparse.BooleanOptionalAction, help="attend only within documents")
    flag(group, "seed", _whole_or_0, f"seed of weights and data order (default {RunConfig().seed})")


def _data_flags(group: Group) -> None:
    defaults = DataConfig()
    group.add_argument(
        "--data",
        dest="paths",
        nargs="+",
        type=path,
        metavar="PATH",
        help="files and folders of text, JSON, JSONL, CSV or Parquet (default: this Python's standard library source)",
    )
    flag(group, "text-field", str, f"column that holds the text (default {defaults.text_field})")
    flag(group, "held-out-fraction", _quantity, f"share of the text held out (default {defaults.held_out_fraction})")
    flag(group, "max-epochs", _quantity, f"largest number of passes over the corpus (default {defaults.max_epochs:g})")
    flag(group, "blend", path, "weights of a prepared corpus's sources, as `mix fit --out` writes them", metavar="FILE")
    flag(group, "eval-interval-tokens", whole, "trained tokens between evaluations (default: ten in a run)")
    flag(group, "sample-interval-tokens", whole, "trained tokens between samples of text (default: only at the end)")
    flag(group, "output", path, "folder for runs, prepared data and mlflow.db (default runs)", metavar="FOLDER")
    flag(group, "run-name", run_name, "name of the run's folder and of its MLflow run (default: budget and time)")


def _checkpoint_flags(group: Group) -> None:
    defaults = CheckpointConfig()
    text = "time, tokens or steps between checkpoints, such as 1B-tokens or 500-steps (default 30m)"
    flag(group, "save-every", save_interval, text, metavar="30m")
    flag(group, "keep", whole, f"number of newest checkpoints to keep (default {defaults.keep})")
    flag(group, "milestone-every", whole, "also keep checkpoints at multiples of this many steps", metavar="STEPS")
    group.add_argument(
        "--save-in-background",
        action=argparse.BooleanOptionalAction,
        help="continue training while a copy in host memory is written (default yes)",
    )
    text = "resume the last unfinished run of the same command (the default), none, or this run"
    flag(group, "resume", str, text, metavar="latest|none|FOLDER")
    flag(group, "init-from", path, "start from the weights of this checkpoint or run", metavar="FOLDER")


def _guard_flags(group: Group) -> None:
    defaults = GuardConfig()
    text = f"consecutive batches with non-finite loss or gradient that end the run (default {defaults.max_bad_batches})"
    flag(group, "max-bad-batches", whole, text)
    text = f"what to do when the loss jumps and stays high (default {defaults.on_spike})"
    flag(group, "on-spike", choice(OnSpike), text, metavar=_names(OnSpike))
    text = f"time after which a step counts as hung (default {defaults.hang_timeout_s:g})"
    flag(group, "hang-timeout", _quantity, text, metavar="SECONDS", dest="hang_timeout_s")


def _plugin_flags(group: Group) -> None:
    text = "your own callback, or one by the name that an installed package gives it; repeatable"
    group.add_argument(
        "--callback", action="append", type=plugin, metavar="MODULE:CLASS[,KEY=VALUE]", help=text, dest="callbacks"
    )


def layout_flags(group: Group) -> None:
    """Add the flags of the parallel layout."""
    flag(group, "tensor-model-parallel-size", whole, "ranks that each matrix is split over")
    flag(group, "pipeline-model-parallel-size", whole, "ranks that the layers are divided among")
    flag(group, "virtual-pipeline-model-parallel-size", whole, "model chunks per pipeline stage")
    group.add_argument(
        "--sequence-parallel",
        action=argparse.BooleanOptionalAction,
        help="split norms and residuals over the tensor-parallel ranks",
    )
    flag(
        group,
        "recompute",
        choice(Recompute),
        "which activations the backward pass recomputes",
        metavar=_names(Recompute),
    )
