import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.config import GuardConfig, OnSpike
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import Decay, Recompute
from chinchilla_ds.runs.command import BESIDE_A_PLAN

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --ds_config/--ds-config"),
        (["--ds_config"], "--ds_config/--ds-config: expected one argument"),
        (["--ds_config", "x.json", "--flop", "1e9"], "--flop is not a flag; did you mean '--flops'?"),
        (["--ds_config", "x.json", "--outptu=x"], "--outptu is not a flag; did you mean '--output'?"),
        (["--ds_config", "x.json", "--zzz"], "--zzz is not a flag; --help lists them"),
        (["--ds_config", "x.json", "stray"], "'stray' belongs to no flag; --help lists them"),
        (["--ds_config", "x.json", "--flops", "-1"], "--flops: '-1' is not a positive finite number"),
        (["--ds_config", "x.json", "--flops", "nan"], "--flops: 'nan' is not a positive finite number"),
        (["--ds_config", "x.json", "--flops", "1e999"], "--flops: '1e999' is not a positive finite number"),
        (
            ["--ds_config", "x.json", "--flops", "abc"],
            "--flops: 'abc' is not a number of FLOPs such as 1e21, 5E or 1 ZFLOP",
        ),
        (["--ds_config", "x.json", "--seq-length", "2.5"], "--seq-length: '2.5' is not a whole number"),
        (["--ds_config", "x.json", "--max-epochs", "0"], "--max-epochs: '0' is not a positive finite number"),
        (["--ds_config", "x.json", "--data"], "--data: expected at least one argument"),
        (["--ds_config", "x.json", "--data", ""], "--data: a path cannot be empty"),
        (["--ds_config", "x.json", "--output", " "], "--output: a path cannot be empty"),
        (
            ["--ds_config", "x.json", "--decay", "cosin"],
            "--decay: 'cosin' is not one of cosine, wsd; did you mean 'cosine'?",
        ),
        (["--ds_config", "x.json", "--precision", "int8"], "--precision: 'int8' is not one of fp32, bf16, fp16"),
    ],
)
def test_a_bad_command_line_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert caught.value.problems == (message,)


def test_every_unknown_flag_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--ds_config", "x.json", "--flop", "1", "--sed", "2"])
    assert len(caught.value.problems) == 2


def test_values_reach_the_config() -> None:
    arguments = parse(
        ["--ds_config", "x.json", "--flops", "2e13", "--decay", "wsd", "--recompute", "full", "--data", "a", "b"]
    )
    assert arguments.config.compute_budget_flops == 2e13
    assert arguments.config.decay is Decay.WSD
    assert arguments.config.layout.recompute is Recompute.FULL
    assert arguments.config.data.paths == (Path("a"), Path("b"))
    assert arguments.explicit == {"compute_budget_flops", "decay", "recompute", "paths"}


def test_the_launchers_local_rank_is_no_setting() -> None:
    assert parse(["--local_rank=3", "--ds_config", "x.json"]).explicit == frozenset()


def test_help_is_printed_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            parse(["--help"])
        assert caught.value.code == 0
    assert capsys.readouterr().out.count("usage:") == 1


def test_help_answers_at_once() -> None:
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "launchers/pretrain.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - started_s < 3.0  # 0.3 s on an idle machine; torch alone takes longer than the limit
    assert "--flops" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_guards_are_no_part_of_what_fixes_a_plan() -> None:
    arguments = parse(
        ["--ds_config", "x.json", "--max-bad-batches", "9", "--on-spike", "rewind", "--hang-timeout", "90.5"]
    )
    assert arguments.config.guards == GuardConfig(max_bad_batches=9, on_spike=OnSpike.REWIND, hang_timeout_s=90.5)
    assert arguments.explicit == {"max_bad_batches", "on_spike", "hang_timeout_s"}
    assert arguments.explicit <= BESIDE_A_PLAN
