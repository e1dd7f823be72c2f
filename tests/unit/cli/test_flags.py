"""Messages name fields; the command line shows flags for them."""

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chinchilla_ds
from chinchilla_ds.cli.arguments import Parser, training_parser
from chinchilla_ds.cli.flags import flags_named, with_flags
from chinchilla_ds.cli.main import COMMANDS, parser_of
from chinchilla_ds.config import RunConfig, field_path
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import PluginSpec

PACKAGE = Path(chinchilla_ds.__file__).parent
WRITES_A_COMMAND_LINE = {PACKAGE / "runs" / "proxy.py"}
"""Starts launchers/pretrain.py in a process of its own: its strings are that command's arguments, not messages."""
NOT_OURS = {"--signal", "--num_gpus", "--master_port", "--nproc-per-node", "--no-python", "--gpus-per-task"}
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_REFERENCE = re.compile(r"`([a-z]\w*(?:\.[a-z]\w*)*)(?:=[^`]*)?`")


def parsers() -> dict[str, Parser]:
    return {"": training_parser(), **{name: parser_of(name) for name in COMMANDS}}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "cli"]


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the strings that are statements: docstrings of modules, functions, classes and fields."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def strings(path: Path, *, documentation: bool) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module with their lines; a value within an f-string is written as {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documenting = docstrings(tree)
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in within or (id(node) in documenting and not documentation):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))


def test_no_module_outside_the_command_line_speaks_of_flags() -> None:
    ours = {option for parser in parsers().values() for action in parser._actions for option in action.option_strings}
    assert not ours & NOT_OURS
    told = [
        f"{path.relative_to(PACKAGE)}:{line}: {flag}"
        for path in modules()
        if path not in WRITES_A_COMMAND_LINE
        for line, text in strings(path, documentation=True)
        for flag in _FLAG.findall(text)
        if flag in ours
    ]
    assert not told, "name the field in backquotes: " + ", ".join(told)


def fields_of_config() -> set[str]:
    """Return every field of RunConfig, those of its parts with the part's name before them."""
    config = RunConfig()
    names = set()
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        is_part = dataclasses.is_dataclass(part) and not isinstance(part, PluginSpec)
        inner = dataclasses.fields(part) if is_part else ()
        names |= {f"{field.name}.{one.name}" for one in inner} or {field.name}
    return names


def references() -> set[tuple[str, str]]:
    """Return (where, field) of every field that a message names."""
    return {
        (f"{path.relative_to(PACKAGE)}:{line}", name)
        for path in modules()
        for line, text in strings(path, documentation=False)
        for name in _REFERENCE.findall(text)
    }


def test_every_field_that_a_message_names_has_a_flag() -> None:
    every, config = parsers(), fields_of_config()
    destinations = {
        name: {action.dest for action in parser._actions if action.option_strings} for name, parser in every.items()
    }
    anywhere = set().union(*destinations.values())
    parts = {name.split(".")[0] for name in config if "." in name}
    named = references()
    for where, name in named:
        room, _, last = name.rpartition(".")
        if room in parts:
            assert name in config, f"{where}: RunConfig has no {name}"
            assert last in anywhere, f"{where}: no flag sets {name}"
        elif room:
            assert last in destinations[room], f"{where}: chinchilla-ds {room} has no flag for {last}"
        else:
            assert last in anywhere, f"{where}: no flag sets {name}"
    assert len(named) > 80
    assert {name for _, name in named} >= {"checkpoint.resume", "compute_budget_flops", "prepare.tokenizer"}


def test_every_flag_of_training_sets_a_field_by_its_name() -> None:
    own = {"help", "config", "ds_config", "plan", "dry_run", "local_rank", "deepspeed_config"}
    destinations = {action.dest for action in training_parser()._actions} - own
    assert {field_path(name) for name in destinations} <= fields_of_config()


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("", "lower `compute_budget_flops=1e12` or `micro_batch_size`", "lower --flops 1e12 or --micro-batch-size"),
        ("", "`checkpoint.resume=none` begins", "--resume none begins"),
        ("", "`document_mask=false`, `layout.sequence_parallel=true`", "--no-document-mask, --sequence-parallel"),
        ("", "`guards.hang_timeout_s=60`, `data.paths`", "--hang-timeout 60, --data"),
        ("", "`checkpoint.init_from=a b=c` begins", "--init-from a b=c begins"),
        ("plan", "`layout.zero_stage=3` with `gpu`", "--zero-stage 3 with --gpu"),
        ("", "`layout.zero_stage` must be", "`layout.zero_stage` must be"),  # training has no such flag
        ("evaluate", "`prepare.tokenizer=x`; `checkpoint.resume`", "chinchilla-ds prepare --tokenizer x; --resume"),
        ("mix fit", "`num_tokens=5` at `max_epochs=2`, `targets=a`", "--tokens 5 at --max-epochs 2, --target a"),
        ("export", "`out=/a`, `model.safetensors`, `x-y fit`", "--out /a, `model.safetensors`, `x-y fit`"),
        ("export", "batch.micro_batch_size (3 sequences)", "batch.micro_batch_size (3 sequences)"),
    ],
)  # fmt: skip
def test_messages_on_a_command_line(command: str, message: str, shown: str) -> None:
    assert with_flags(message, parser=parsers()[command]) == shown


def test_an_error_keeps_its_kind_and_every_problem() -> None:
    with pytest.raises(ConfigError) as error, flags_named(training_parser()):
        raise ConfigError(["`num_params` is 1", "`seed` is 2"])
    assert error.value.problems == ("--params is 1", "--seed is 2")
    assert str(error.value) == "--params is 1\n--seed is 2"


def test_problems_of_a_config_name_fields_that_there_are() -> None:
    from chinchilla_ds.budget.checks import config_problems

    layout = dataclasses.replace(RunConfig().layout, zero_stage=9, tensor_model_parallel_size=0)
    data = dataclasses.replace(RunConfig().data, held_out_fraction=2.0, max_epochs=-1.0)
    config = RunConfig(
        compute_budget_flops=-1.0, num_params=0.0, num_tokens=1e30, shape="llama-3-8", law="chinchila", seq_length=0,
        vocab_size=0, global_batch_size=0, micro_batch_size=0, learning_rate=2.0, gradient_clipping=-1.0,
        eval_interval_tokens=0, seed=-1, inference_tokens=0.0, unique_tokens=0.0, layout=layout, data=data,
    )  # fmt: skip
    problems = list(config_problems(config, world_size=1, device="cpu"))
    named = {name for problem in problems for name in _REFERENCE.findall(problem)}
    assert len(problems) >= 18
    assert all(_REFERENCE.match(problem) for problem in problems), problems
    assert named <= fields_of_config()
    importlib.import_module("chinchilla_ds.cli.plan")
    shown = [with_flags(problem, parser=parser_of("plan")) for problem in problems]
    assert any(problem.startswith("--flops (-1.0 FLOPs) must be") for problem in shown)
