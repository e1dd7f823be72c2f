"""`chinchilla-ds`, `python -m chinchilla_ds`, help, version, completion, and what a bare installation says."""

import importlib
import json
import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from chinchilla_ds import cli
from chinchilla_ds.budget.deepspeed_json.resolve import SHIPPED_FOLDER, load_ds_config, shipped_configs
from chinchilla_ds.cli.commands import COMMANDS, GROUPS, module_of, parser_of
from chinchilla_ds.cli.completion import SHELLS
from chinchilla_ds.cli.config_file import flags_of
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.config import RUN_NAME
from chinchilla_ds.errors import ConfigError, DsConfigError
from chinchilla_ds.processes.packages import DISTRIBUTIONS, MissingPackageError, missing_packages
from tests.unit.budget.laws.test_scaling_laws import LAW_FILE

ROOT = Path(__file__).resolve().parents[3]
BARE = ["plan --flops 1e21 --gpus 64 --gpu h100 --out {plan}", "memory {plan}", "ds-config {plan}",
        "laws --flops 1e21", "help plan", "plan --flops 1e21 --law {law}", "--version"]  # fmt: skip


# ---- help and version ------------------------------------------------------------------------------------------------


def test_the_package_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chinchilla_ds", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == f"chinchilla-ds {metadata.version('chinchilla-ds')}\n"


def test_help_lists_the_commands_and_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["help"]) == run_command([]) == run_command(["--help"])
    for name in COMMANDS:
        assert f"  {name} " in run_command(["help"])
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        assert capsys.readouterr().out.strip() == run_command(["help", *name.split()]).strip()
    with pytest.raises(ConfigError, match=r"'plam' is not one of .*did you mean 'plan'"):
        run_command(["help", "plam"])
    with pytest.raises(ConfigError, match="help explains one command"):
        run_command(["help", "plan", "fit"])


def test_a_module_with_a_command_is_all_that_a_command_needs() -> None:
    modules = [importlib.import_module(info.name) for info in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}.")]
    declared = {
        module.COMMAND.name: (module.__name__, module.COMMAND) for module in modules if hasattr(module, "COMMAND")
    }
    assert declared == {name: (module_of(name), command) for name, command in COMMANDS.items()}
    assert len(declared) >= 21
    assert list(dict.fromkeys(command.group for command in COMMANDS.values())) == list(GROUPS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_examples_of_the_command(name: str) -> None:
    shown = parser_of(name).format_help().rstrip()
    assert COMMANDS[name].examples
    assert all(f"chinchilla-ds {name}" in line or f"chinchilla_ds {name}" in line for line in COMMANDS[name].examples)
    assert shown.endswith("examples:\n" + "\n".join(f"  {example}" for example in COMMANDS[name].examples))


def test_training_is_a_command_that_is_called_pretrain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err


def test_the_launchers_rank_before_the_command_goes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `deepspeed --module chinchilla_ds pretrain` starts it."""
    given: list[list[str]] = []
    monkeypatch.setattr("chinchilla_ds.cli.pretrain.main", lambda words: given.append(words) or 85)
    assert main(["--local_rank=1", "pretrain", "--ds_config", "zero3"]) == 85
    assert given == [["--ds_config", "zero3", "--local_rank=1"]]


# ---- completion ------------------------------------------------------------------------------------------------------

_COMPLETE = """
source <("$0" -m chinchilla_ds completion bash) || exit 9
complete -p chinchilla-ds > /dev/null || exit 8
COMP_WORDS=(chinchilla-ds {words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
function_name=$(complete -p chinchilla-ds | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function_name" chinchilla-ds "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("pl", ["plan"]),
        ("pre", ["prepare", "pretrain"]),
        ("checkpoint ''", ["convert", "inspect", "verify"]),
        ("plan --gpu-h", ["--gpu-hours"]),
        ("pretrain --run", ["--run-name"]),
        ("mix design --min", ["--min-share"]),
        ("plan --zero-stage ''", ["0", "1", "2", "3"]),
        ("completion ''", ["bash", "zsh"]),
    ],
)
def test_bash_completes_what_it_has_sourced(words: str, completed: list[str]) -> None:
    script = _COMPLETE.format(words=words)
    done = subprocess.run(["bash", "-c", script, sys.executable], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == completed, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command_and_flag(shell: str) -> None:
    script = run_command(["completion", shell])
    for name in COMMANDS:
        assert name.split()[-1] in script
        for flag in flags_of(parser_of(name)):
            assert flag.option_strings[0] in script, f"{name} {flag.option_strings[0]}"


# ---- shipped files ---------------------------------------------------------------------------------------------------


def test_shipped_files_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(path.stem for path in SHIPPED_FOLDER.iterdir()) == sorted(shipped_configs())
    for name, content in shipped_configs().items():
        assert load_ds_config(name) == content == load_ds_config(SHIPPED_FOLDER / f"{name}.json")
    Path("zero3").write_text('{"train_batch_size": 1}')
    assert load_ds_config("zero3") == shipped_configs()["zero3"], "a name is not taken by a file"
    assert load_ds_config(tmp_path / "zero3") == {"train_batch_size": 1}
    Path("mine").write_text('{"zero_optimization": {}}')
    assert load_ds_config("mine") == {"zero_optimization": {}}
    with pytest.raises(DsConfigError, match=r"'zero4' is neither a file nor one of zero1, .*did you mean 'zero"):
        load_ds_config("zero4")
    with pytest.raises(DsConfigError, match=r"zero9\.json cannot be read: No such file"):
        load_ds_config("zero9.json")


# ---- a bare installation ---------------------------------------------------------------------------------------------


def _bare(words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command where Python alone is there: -S leaves site-packages out."""
    code = "import sys; from chinchilla_ds.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", code, *words.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_planning_needs_nothing_but_python(tmp_path: Path) -> None:
    law = tmp_path / "law.json"
    law.write_text(json.dumps(LAW_FILE))
    for words in BARE:
        done = _bare(words.format(plan=tmp_path / "plan.json", law=law))
        assert done.returncode == 0, f"{words}: {done.stderr}"
        assert done.stdout


@pytest.mark.parametrize("words", ["fit x.csv", "prepare --out x", "pretrain --ds_config zero3", "generate x",
                                   "evaluate x", "export x --out y", "import x --out y", "track x", "completion bash",
                                   "checkpoint inspect x", "checkpoint verify x", "mix fit x",
                                   "plan --config pyproject.toml"])  # fmt: skip
def test_a_command_that_lacks_a_package_says_which(words: str) -> None:
    done = _bare(words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    command = " ".join(word for word in words.split()[: 2 if words.split()[0] in ("checkpoint", "mix") else 1])
    assert line.startswith(f"error: chinchilla-ds {command} needs ")
    assert ", which is not installed: " in line
    if command == "fit":
        assert line.endswith("`pip install numpy scipy matplotlib` installs all that it needs")


def test_every_dependency_has_its_name_for_pip() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line.split(">")[0].split("=")[0].strip() for line in project["dependencies"]}
    assert names == set(DISTRIBUTIONS.values())


def test_a_module_that_is_no_dependency_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), missing_packages("plan"):
        import no_such_module  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="numpy"), missing_packages("plan"):
        raise ModuleNotFoundError("a module of numpy that is missing while numpy is there", name="numpy.nothing")


def test_a_dependency_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTRIBUTIONS, "no_such_module", "no-such-package")
    with pytest.raises(MissingPackageError, match="needs no-such-package, which is not installed"), \
            missing_packages("plan"):  # fmt: skip
        import no_such_module  # noqa: F401


def test_planning_imports_no_framework() -> None:
    code = "import sys; from chinchilla_ds.cli.main import main; main(['plan', '--flops', '1e21']); " \
           "sys.stderr.write(' '.join(sys.modules))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & set(DISTRIBUTIONS)


@pytest.mark.parametrize("name", ["first", "a.b-c_1", "x" * 100, "data2", "2"])
def test_names_of_runs(name: str) -> None:
    assert RUN_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "data", "../x", "-x", ".x", "a/b", "x" * 101, "a b", "a\n", "é"])
def test_what_is_no_name_of_a_run(name: str) -> None:
    assert not RUN_NAME.fullmatch(name)
