"""What stands around every command."""

import importlib
from types import SimpleNamespace

import pytest

from chinchilla_ds.cli import main as main_module
from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.cli.main import main
from chinchilla_ds.errors import ConfigError, did_you_mean

FLAGS = [
    "--ds_config", "--plan", "--flops", "--params", "--tokens", "--shape", "--law", "--seq-length", "--vocab-size",
    "--global-batch-size", "--micro-batch-size", "--decay", "--seed", "--data", "--max-epochs", "--output", "--help",
    "--save-every", "--save-in-background", "--resume",
]  # fmt: skip


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Make `plan` do something else."""

    def replace(work) -> None:
        fake = SimpleNamespace(add_flags=lambda parser: None, run=lambda arguments: work())
        monkeypatch.setattr(importlib, "import_module", lambda name: fake)

    return replace


def _raise(error: BaseException):
    def work() -> str:
        raise error

    return work


def test_memory_that_runs_out_is_one_line_that_says_where(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(_raise(MemoryError("Unable to allocate 9 TiB")))
    assert main(["plan"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: out of memory (Unable to allocate 9 TiB), in cli/main.py:")
    assert "in a call of cli/test_main.py:" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("error", [RecursionError("a bug"), ValueError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(command, error: Exception) -> None:
    command(_raise(error))
    with pytest.raises(type(error), match="a bug"):
        main(["plan"])


@pytest.mark.parametrize("code", [0, None, 1])
def test_a_library_that_exits_has_not_finished_the_command(command, code: int | None) -> None:
    command(_raise(SystemExit(code)))
    with pytest.raises(RuntimeError, match="a library has called exit"):
        main(["plan"])


def test_help_exits_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["ds-config", "--help"])
    assert left.value.code == 0
    assert "Write the DeepSpeed JSON of a plan." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["--deepspeed_config", "--deepspeed"])
@pytest.mark.parametrize("more", [[], ["--ds_config", "x.json"]])
def test_deepspeeds_own_name_for_the_ds_config(name: str, more: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{name} is called --ds_config here: --ds_config zero3.json"):
        parse([name, "zero3.json", *more])
    with pytest.raises(ConfigError, match=f"{name} is called --ds_config here"):
        parse([*more, name])


def test_training_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain"]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --ds_config/--ds-config\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--flop", ["--flops"]),
        ("--seq_length", ["--seq-length"]),
        ("--seq-len", ["--seq-length"]),
        ("--vocab", ["--vocab-size"]),
        ("--epochs", ["--max-epochs"]),
        ("--batch-size", ["--global-batch-size", "--micro-batch-size"]),
        ("--save", ["--save-every", "--save-in-background"]),
        ("--dataset", ["--data"]),
        ("--resume-from", ["--resume"]),
        ("--ouptut", ["--output"]),
        ("--ds_confg", ["--ds_config"]),
        # another flag that shares some letters is no help
        *((typed, []) for typed in ("--lr", "--model", "--steps", "--gpus", "--tp", "--pp", "--log", "--fp16", "--x")),
        *((typed, []) for typed in ("--warmup", "--weight-decay", "--dtype", "--deepspeed")),
    ],
)
def test_a_guess_is_one_that_may_be_meant(typed: str, meant: list[str]) -> None:
    expected = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    assert did_you_mean(typed, FLAGS) == expected


def test_a_guess_among_commands() -> None:
    assert did_you_mean("eval", main_module.COMMANDS) == "; did you mean 'evaluate'?"
    assert did_you_mean("eveluate", main_module.COMMANDS) == "; did you mean 'evaluate'?"


def test_a_guess_among_many_files_takes_no_time() -> None:
    names = [f"part-{number:06d}-of-100000.jsonl" for number in range(20_000)]
    assert did_you_mean("part-000017-of-10000.jsonl", names) != ""
