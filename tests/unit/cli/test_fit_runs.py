"""The runs that `chinchilla-ds fit` reads: other tables' columns and units, and runs that cannot be compared."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds import fit
from chinchilla_ds.budget.laws.fitting.surface import Surface
from chinchilla_ds.budget.laws.lookup import load_law
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.errors import ConfigError, DataError
from tests.unit.cli.test_fit import TRUTH, log_run, sweep

EXACT = ("--form", "additive", "--prior", "none", "--bootstrap", "0")
BYTES = {"aaaa": 4.0, "bbbb": 2.0}
"""Bytes per token of two tokenizers."""


def exactly(*words: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run_command(["fit", *map(str, words), *EXACT, "--json"]))
    return data


def per_byte(num_params: float, num_bytes: float) -> float:
    """Return the truth as a law per byte: that of 4 bytes per token."""
    return TRUTH.loss(num_params=num_params, num_tokens=num_bytes / 4) / 4


def two_tokenizers(path: Path, *, held_out: str = "x") -> Path:
    """Write a sweep of which every second run has another tokenizer and, on the same text, another loss."""
    lines = ["run,N,tokens,loss,tokenizer_hash,held_out_hash,bytes_per_token"]
    for index, (params, tokens, _) in enumerate(sweep()):
        name = ("aaaa", "bbbb")[index % 2]
        size = BYTES[name]
        loss = size * per_byte(params, size * tokens)
        lines.append(f"r{index},{params!r},{tokens!r},{loss!r},{name},{held_out if index < 9 else 'x'},{size}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_table_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "theirs.tsv"
    rows = [f"{n!r}\t{d!r}\t{loss!r}\t{loss - 1!r}" for n, d, loss in sweep()]
    path.write_text("\n".join(["N_total\tD\tLoss\tother_loss", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match="is it --columns num_params=N_total"):
        run_command(["fit", str(path)])
    assert exactly(path, "--columns", "params=N_total")["alpha"] == pytest.approx(0.35, rel=1e-6)
    report = fit(path, columns={"num_params": "N_total", "loss": "other_loss"})
    assert report.runs.loss.tolist() == pytest.approx([loss - 1 for _, _, loss in sweep()])


def test_perplexities_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "ppl.csv"
    rows = [f"{n!r},{d!r},{math.exp(loss)!r}" for n, d, loss in sweep()]
    path.write_text("\n".join(["params,tokens,val_ppl", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match="'val_ppl' is a perplexity: --unit perplexity takes its logarithm"):
        run_command(["fit", str(path)])
    data = exactly(path, "--unit", "perplexity")
    assert (data["E"], data["unit"]) == (pytest.approx(1.7, rel=1e-6), "token")


def test_two_tokenizers_end_with_exit_code_2_and_both_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(two_tokenizers(tmp_path / "two.csv")), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "r0 (row 2) has the tokenizer aaaa and r1 (row 3) bbbb" in shown.err
    assert "--unit byte fits them per byte" in shown.err


def test_two_tokenizers_are_fitted_per_byte(tmp_path: Path) -> None:
    data = exactly(two_tokenizers(tmp_path / "two.csv"), "--unit", "byte")
    assert data["unit"] == "byte"
    truth = {"E": 1.7 / 4, "A": 400 / 4, "alpha": 0.35, "B": 1000 / 4 * 4**0.32, "beta": 0.32}
    assert {name: data[name] for name in truth} == pytest.approx(truth, rel=1e-5)
    text = run_command(["fit", str(tmp_path / "two.csv"), "--unit", "byte", *EXACT])
    assert " bytes\n" in text
    assert "nats per byte" in text
    assert " FLOPs" not in text


def test_two_held_out_texts_are_refused_per_byte_too(tmp_path: Path) -> None:
    path = two_tokenizers(tmp_path / "two.csv", held_out="y")
    with pytest.raises(DataError, match=r"r0 \(row 2\) was evaluated on the held-out text y and r9 \(row 11\) on x"):
        run_command(["fit", str(path), "--unit", "byte"])


def test_a_law_per_byte_is_no_law_to_plan_with_and_one_of_a_tokenizer_is(tmp_path: Path) -> None:
    path, law = two_tokenizers(tmp_path / "two.csv"), tmp_path / "law.json"
    exactly(path, "--unit", "byte", "--out", law)
    assert json.loads(law.read_text())["unit"] == "byte"
    with pytest.raises(ConfigError) as caught:
        run_command(["plan", "--flops", "1e20", "--law", str(law)])
    assert "it is per byte, and budgets count tokens" in caught.value.problems[0]
    assert "chinchilla-ds fit --bytes-per-token B" in caught.value.problems[0]
    data = exactly(path, "--unit", "byte", "--bytes-per-token", "4", "--flops", "1e20", "--out", law)
    assert "unit" not in json.loads(law.read_text())
    best = TRUTH.optimal(compute_budget_flops=1e20)
    assert load_law(law).optimal(compute_budget_flops=1e20).num_params == pytest.approx(best.num_params, rel=1e-4)
    assert data["optimal"]["loss"] == pytest.approx(best.loss, rel=1e-5)
    assert data["unit"] == "token"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--columns", "loss"), "--columns: 'loss' does not say which column is meant"),
        (("--columns", "los=x"), "--columns: 'los' is not one of num_params"),
        (("--columns", "loss=x"), "{path}: --columns loss=x: there is no such column"),
        (("--unit", "bit"), "--unit: 'bit' is not one of token, byte, perplexity"),
        (("--bytes-per-token", "4"), "--bytes-per-token has no effect without --unit byte"),
        (("--unit", "byte", "--flops", "1e20"), "--flops is about compute, 6 N D with D in tokens"),
        (("--unit", "byte", "--approach", "all"), "--approach is about compute"),
        (("--unit", "byte", "--picture", "x.png"), "--picture is about compute"),
    ],
)
def test_flags_that_make_no_sense(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    path = two_tokenizers(tmp_path / "two.csv")
    with pytest.raises(ConfigError) as caught:
        run_command(["fit", str(path), *words])
    assert caught.value.problems[0].startswith(problem.format(path=path))


def test_the_library_refuses_what_has_no_effect(tmp_path: Path) -> None:
    path = two_tokenizers(tmp_path / "two.csv")
    with pytest.raises(ConfigError, match="`unit` is 'bit'; it must be one of token, byte, perplexity"):
        fit(path, unit="bit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`bytes_per_token` has no effect"):
        fit(path, bytes_per_token=4.0)


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_an_experiment_of_two_tokenizers(tmp_path: Path) -> None:
    """A later run with another tokenizer, and one of an earlier version, whose bytes follow from its bits per byte."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for index, (params, tokens, _) in enumerate(sweep(sizes=3, budgets=(1e18, 1e19, 1e20))):
        name = "bbbb" if index == 4 else "aaaa"
        size = BYTES[name]
        loss = size * per_byte(params, size * tokens)
        hashes = {"tokenizer_hash": name, "held_out_hash": "x", "bytes_per_token": size, "train_bytes_per_token": size}
        log_run(
            uri,
            name=f"run-{index}",
            params={"num_params": params, "num_tokens": tokens, **({} if index == 7 else hashes)},
            metrics={"held_out/loss": loss, "held_out/bits_per_byte": loss / size / math.log(2)},
            finished=True,
        )
    with pytest.raises(DataError) as caught:
        run_command(["fit", "mlflow:sweep", "--tracking-uri", uri])
    assert "run run-0 has the tokenizer aaaa and run run-4 bbbb" in caught.value.problems[0]
    data = exactly("mlflow:sweep", "--tracking-uri", uri, "--unit", "byte")
    assert (data["num_points"], data["alpha"], data["beta"]) == (
        9,
        pytest.approx(0.35, 1e-5),
        pytest.approx(0.32, 1e-5),
    )
    assert data["warnings"] == [
        "1 of 9 runs do not say which held-out text they have: assumed to be that of the others"
    ]
    for words in (("--columns", "loss=x"), ("--unit", "perplexity")):
        with pytest.raises(ConfigError, match=f"{words[0]}.*belongs to tables"):
            run_command(["fit", "mlflow:sweep", "--tracking-uri", uri, *words])


def test_the_truth_per_byte_is_the_same_surface() -> None:
    """The closed form that the tests above expect: L/b and b D for b bytes per token."""
    surface = Surface(
        irreducible_loss=1.7 / 4,
        params_coefficient=400 / 4,
        tokens_coefficient=1000 / 4 * 4**0.32,
        alpha=0.35,
        beta=0.32,
    )
    assert surface.loss(num_params=1e9, num_tokens=1e11) == pytest.approx(per_byte(1e9, 1e11))
