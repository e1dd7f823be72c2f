"""`chinchilla-ds mix run` with runs that only pretend to train: what is done, kept, gone on with, and refused."""

import csv
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from chinchilla_ds.cli import mix_run
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.errors import ChinchillaError, ConfigError, DataError, OutputError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs import proxy as proxy_process
from tests.unit.cli.test_mix import write_corpus

PRETEND = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, trouble = Path(words["--output"]), Path(words["--data"], "trouble")
weights = yaml.safe_load(Path(words["--blend"]).read_text())["weights"]
seed = json.loads(Path(words["--plan"]).read_text())["seed"]
what, name = (*trouble.read_text().split(), "", "")[:2] if trouble.exists() else ("", "")
if folder.name == name:
    Path(words["--data"], "pid").write_text(str(os.getpid()))
    if what in ("SIGINT", "SIGTERM"):
        os.kill(os.getppid(), getattr(signal, what))
        time.sleep(60)
    if what == "STOP":
        sys.exit(85)
    if what == "refuse":
        sys.exit(sys.stderr.write("error: the loss is nan; lower --learning-rate\\n") and 2)
    if what == "crash":
        raise ValueError("a bug")
(folder / "1e11-now").mkdir(exist_ok=True)
last = {"step": 9, "held_out/loss": 3 + weights["web"]}
rows = [{"step": 5, "held_out/loss": 9.0}, {"step": 9, "train/loss": 1.0}, last]
(folder / "1e11-now/metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print("trained with seed", seed)
"""
TABLE = """run,weight:web,weight:code,note
natural,0.750000,0.250000,first
mix-1,0.100000,0.900000,
again,0.100000,0.900000,"same, other seed"
mix-2,0,1,
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", tokens={"code": 1_000_000, "web": 3_000_000})


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mixes.csv"
    path.write_text(TABLE, encoding="utf-8")
    real = proxy_process._command
    monkeypatch.setattr(
        proxy_process, "_command", lambda proxy: [sys.executable, "-c", PRETEND, *map(str, real(proxy)[3:])]
    )
    monkeypatch.setattr(mix_run, "device_type", lambda: "cpu")
    monkeypatch.chdir(tmp_path)
    return path


def words(table: Path, corpus: Path, ds_configs: Path, *more: object) -> list[str]:
    where = ["--corpus", corpus, "--ds_config", ds_configs / "zero1.json", "--seq-length", 128]
    return ["mix", "run", *map(str, [table, *where, *(more or ("--flops", "1e11"))])]


def losses(table: Path) -> dict[str, str]:
    return {row["run"]: row["loss"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())}


def test_every_row_gets_its_loss_and_the_rest_of_the_table_stays(
    table: Path, corpus: Path, ds_configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_command(words(table, corpus, ds_configs))
    assert losses(table) == {"natural": "3.750000", "mix-1": "3.100000", "again": "3.100000", "mix-2": "3.000000"}
    kept = [line.rsplit(",", 1)[0] for line in table.read_text(encoding="utf-8").splitlines()]
    assert kept == TABLE.splitlines()
    assert text.splitlines()[:3] == [
        f"4 of 4 runs have a loss in {table}, 4 of them new",
        "mix-2           3.0000",
        "natural         3.7500",
    ]
    assert "natural         held-out loss 3.7500" in capsys.readouterr().err
    plans = {
        name: RunPlan.from_json(Path("runs/mixes", name, "plan.json").read_text())
        for name in ("mix-1", "again", "mix-2")
    }
    assert plans["mix-1"] == plans["mix-2"]
    assert plans["again"].seed == plans["mix-1"].seed + 1  # a repeat with the same seed would tell nothing
    assert Path("runs/mixes/mix-2/blend.yaml").read_text().splitlines()[1:] == [
        "weights:", '  "web": 0.000000', '  "code": 1.000000',
    ]  # fmt: skip
    before = table.read_bytes()
    assert "0 of them new" in run_command(words(table, corpus, ds_configs))
    assert table.read_bytes() == before


@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "STOP"])
def test_an_interrupted_search_keeps_what_is_done_and_goes_on(
    table: Path, corpus: Path, ds_configs: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    (corpus / "trouble").write_text(f"{what} again")
    assert main(words(table, corpus, ds_configs)) == 130
    assert losses(table) == {"natural": "3.750000", "mix-1": "3.100000", "again": "", "mix-2": ""}
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int((corpus / "pid").read_text()), 0)
    (corpus / "trouble").unlink()
    Path("runs/mixes/again/left.txt").write_text("a checkpoint")
    Path("runs/mixes/mix-2").mkdir()
    Path("runs/mixes/mix-2/plan.json").write_text("of another search")
    text = run_command(words(table, corpus, ds_configs))
    assert f"4 of 4 runs have a loss in {table}, 2 of them new" in text
    assert Path("runs/mixes/again/left.txt").is_file()  # so that the run can go on from it
    assert "of another search" not in Path("runs/mixes/mix-2/plan.json").read_text()
    assert losses(table) == {"natural": "3.750000", "mix-1": "3.100000", "again": "3.100000", "mix-2": "3.000000"}


def refused(kind: type[ChinchillaError], argv: list[str]) -> tuple[str, ...]:
    with pytest.raises(kind) as caught:
        run_command(argv)
    return caught.value.problems


def test_a_run_that_fails_is_told_in_its_own_words(table: Path, corpus: Path, ds_configs: Path) -> None:
    (corpus / "trouble").write_text("refuse mix-1")
    assert refused(ConfigError, words(table, corpus, ds_configs)) == (
        "run mix-1: the loss is nan; lower --learning-rate",
    )
    (corpus / "trouble").write_text("crash mix-1")
    with pytest.raises(RuntimeError, match=r"(?s)run mix-1 ended with exit code 1; the end of .*ValueError: a bug"):
        run_command(words(table, corpus, ds_configs))
    assert losses(table)["natural"] == "3.750000"


def test_losses_of_another_plan_or_corpus_are_not_mixed(table: Path, corpus: Path, ds_configs: Path) -> None:
    (corpus / "trouble").write_text("refuse mix-1")
    refused(ConfigError, words(table, corpus, ds_configs))
    (problem,) = refused(ConfigError, words(table, corpus, ds_configs, "--flops", "2e11"))
    assert "1 rows of" in problem
    assert "losses made with a different plan (" in problem
    assert "compute_budget_flops was 100000000000.0 and is 200000000000.0" in problem
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "tokenizer.model").write_bytes(b"other")
    other = hashlib.sha256(b"other").hexdigest()
    (corpus / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_sha256": other}))
    (problem,) = refused(ConfigError, words(table, corpus, ds_configs))
    assert "losses made with a different corpus (" in problem
    assert "tokenizer_sha256" in problem


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[]", "must be an object"), ("\0\0", "is not JSON")])
def test_settings_that_cannot_be_read_do_not_pass_for_the_same(
    text: str, said: str, table: Path, corpus: Path, ds_configs: Path
) -> None:
    (corpus / "trouble").write_text("refuse mix-1")
    refused(ConfigError, words(table, corpus, ds_configs))
    (kept,) = Path.cwd().glob("runs/*/corpus.json")
    kept.write_text(text)
    (problem,) = refused(ConfigError, words(table, corpus, ds_configs))
    assert f"settings of the runs {kept.relative_to(Path.cwd())} {said}" in problem


def test_what_cannot_be_is_refused_before_the_first_run(table: Path, corpus: Path, ds_configs: Path) -> None:
    found = refused(DataError, words(table, corpus, ds_configs, "--params", 1e5, "--tokens", 1.2e6))
    assert [problem.split(": ")[1] for problem in found] == ["mix-1", "again", "mix-2"]
    assert "reads it 1.08 times in a run of 1.2M tokens; allow that with --max-epochs 2" in found[0]
    assert "reads it 1.20 times" in found[2]
    table.write_text(TABLE.replace("again", "mix-1").replace("mix-2,0,1", "../x,0,0.9"), encoding="utf-8")
    assert refused(DataError, words(table, corpus, ds_configs)) == (
        f"{table}: row 5: the weights sum to 0.9; they must sum to 1 within 0.001; divide each by 0.9",
        f"{table}: rows 3 and 4 are both named mix-1; name each run once",
    )
    table.write_text(TABLE.replace("mix-2", "../x"), encoding="utf-8")
    (problem,) = refused(DataError, words(table, corpus, ds_configs))
    assert "row 5: run is '../x'; it names a folder" in problem
    table.write_text("weight:web,weight:cod\n0.5,0.5\n", encoding="utf-8")
    assert len(refused(DataError, words(table, corpus, ds_configs))) == 3
    assert not Path("runs").exists()


def test_a_folder_that_holds_other_files_is_not_emptied(table: Path, corpus: Path, ds_configs: Path) -> None:
    Path("mine/natural").mkdir(parents=True)
    Path("mine/natural/thesis.tex").write_text("x")
    argv = words(table, corpus, ds_configs, "--flops", "1e11", "--output", "mine")
    assert refused(OutputError, argv) == ("mine/natural holds other files; name another --output",)
    assert Path("mine/natural/thesis.tex").is_file()
