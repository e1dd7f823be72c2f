"""`--config run.yaml`: each key is its flag, flags win, and what is wrong is told at once with the file's name."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from chinchilla_ds.cli.arguments import parse, training_parser
from chinchilla_ds.cli.commands import parser_of
from chinchilla_ds.cli.config_file import flags_of
from chinchilla_ds.errors import ConfigError

_TRIED = {
    "ds_config": "zero1", "data": ["a.txt", "b/"], "save_every": "500-steps", "resume": "none", "shape": "llama-3-8b",
    "law": "chinchilla2022", "text_field": "content", "run_name": "first", "gpu": "h100", "zero_stage": 1,
    "offload_optimizer": "cpu", "offload_param": "none", "decay": "wsd", "precision": "bf16", "recompute": "full",
    "on_spike": "rewind", "held_out_fraction": 0.1, "learning_rate": 1e-3, "mfu": 0.4,
}  # fmt: skip
"""A value of each flag whose text cannot be any; the others take a number, a name of a file, or are switches."""


def _value(flag: argparse.Action) -> Any:
    if flag.nargs is None and flag.option_strings[0] == "--data":
        return "corpus"
    name = flag.option_strings[0].removeprefix("--").replace("-", "_")
    if name in _TRIED:
        return _TRIED[name]
    if flag.nargs == 0:
        return True
    return "x.file" if flag.metavar in ("FILE", "FOLDER") else 64


def _words(flag: argparse.Action, value: Any) -> list[str]:
    option = flag.option_strings[-1 if flag.nargs == 0 and value is False else 0]
    return [option] if flag.nargs == 0 else [option, *map(str, value if isinstance(value, list) else [value])]


def _cases() -> list[Any]:
    found = []
    for command in ("pretrain", "plan"):
        for flag in flags_of(parser_of(command)):
            if flag.option_strings[0] in ("-h", "--config"):
                continue
            values = [True, False] if isinstance(flag, argparse.BooleanOptionalAction) else [_value(flag)]
            found += [pytest.param(command, flag, value, id=f"{command} {flag.dest} {value}") for value in values]
    return found


@pytest.mark.parametrize(("command", "flag", "value"), _cases())
@pytest.mark.parametrize("dashes", [True, False])
def test_each_key_is_its_flag(tmp_path: Path, command: str, flag: argparse.Action, value: Any, dashes: bool) -> None:
    key = flag.option_strings[0].removeprefix("--")
    key = key.replace("_", "-") if dashes else key.replace("-", "_")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({key: value}))
    more = ["--ds_config", "zero3"] if command == "pretrain" and flag.dest != "ds_config" else []
    by_flag = vars(parser_of(command).parse_args([*more, *_words(flag, value)]))
    by_key = vars(parser_of(command).parse_args([*more, "--config", str(file)]))
    assert by_key == by_flag
    assert flag.dest in by_key


def test_all_flags_in_one_file_are_all_flags(tmp_path: Path) -> None:
    flags = [flag for flag in flags_of(training_parser()) if flag.option_strings[0] not in ("-h", "--config")]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({flag.option_strings[0][2:]: _value(flag) for flag in flags}))
    words = [word for flag in flags for word in _words(flag, _value(flag))]
    assert parse(["--config", str(file)]) == parse(words)


def test_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("ds_config: zero1\nflops: 1e11\ndata: [a, b]\ntied-embeddings: true\nseed: 7\n")
    words = ["--flops", "2e11", "--data", "c", "--no-tied-embeddings", "--ds-config=zero2"]
    command = parse([f"--config={file}", *words])
    assert command.config.compute_budget_flops == 2e11
    assert command.config.data.paths == (Path("c"),)
    assert not command.config.tied_embeddings
    assert command.ds_config == Path("zero2")
    assert command.config.seed == 7
    assert command == parse([*words, "--config", str(file)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flop: 1", ["run.yaml: flop is not a flag; did you mean 'flops'?"]),
        ("flops:", ["run.yaml: flops has no value; leave it out for the default"]),
        ("flops: [1, 2]", ["run.yaml: flops is [1, 2]; it must be one value"]),
        ("flops: true", ["run.yaml: flops is True; it must be one value"]),
        ("tied-embeddings: 1", ["run.yaml: tied-embeddings is 1; it must be true or false"]),
        ("data: {a: 1}", ["run.yaml: data is {'a': 1}; it must be a value or a list of values"]),
        ("data: [-x]", ["run.yaml: data is '-x', which begins with a dash; write ./-x for a file"]),
        ("config: a.yaml", ["run.yaml: config is not a flag; did you mean 'ds-config'?"]),
        ("help: true", ["run.yaml: help is not a flag"]),
        ("local_rank: 1", ["run.yaml: local_rank is not a flag"]),
        ("seed: 1\nSeed: 2", ["run.yaml: Seed is not a flag; did you mean 'seed'?"]),
        ("run-name: a\nrun_name: b", ["run.yaml: run_name and run-name are the same flag; keep one of them"]),
        ("flops: abc", ["run.yaml: --flops: 'abc' is not a number of FLOPs such as 1e21, 5E or 1 ZFLOP"]),
        ("flop: 1\nsed: 2", ["run.yaml: flop is not a flag; did you mean 'flops'?",
                             "run.yaml: sed is not a flag; did you mean 'seed'?"]),
        ("- flops", ["config run.yaml must be a mapping of flags to values, such as `flops: 1e21`"]),
        ("flops: 1\nflops: 2", ["config run.yaml is not YAML that can be read: key 'flops' occurs twice in one mapping "
                                "at line 2 column 1"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--ds_config", "zero3", "--config", "run.yaml"])
    assert list(caught.value.problems) == said


def test_a_wrong_flag_beside_a_file_is_not_the_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("ds_config: zero1\nflops: abc\n")
    with pytest.raises(ConfigError, match=r"^--flops: 'xyz' is not a number"):
        parse(["--config", str(file), "--flops", "xyz"])
    for words in (["--config"], ["--config", "--flops"], ["--config="]):
        with pytest.raises(ConfigError, match="--config needs the name of a YAML file"):
            parse(words)
    with pytest.raises(ConfigError, match="--config is given twice"):
        parse(["--config", str(file), "--config", str(file)])
    with pytest.raises(ConfigError, match=r"config .*none\.yaml cannot be read"):
        parse(["--config", str(tmp_path / "none.yaml")])


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# nothing\n")
    assert parse(["--config", str(file), "--ds_config", "zero3"]) == parse(["--ds_config", "zero3"])
