"""`chinchilla-ds fit` end to end: on a sweep with a known truth, on the 240 points, and on what it must refuse."""

import csv
import io
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.surface import Surface
from chinchilla_ds.budget.laws.lookup import load_law
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.errors import ChinchillaError, ConfigError, DataError, OutputError
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.jsonl import JsonlBackend
from chinchilla_ds.tracking.mlflow import track
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus
from tests.shared_data import shared_data

TRUTH = Surface(irreducible_loss=1.7, params_coefficient=400.0, tokens_coefficient=1000.0, alpha=0.35, beta=0.32)
SKALING = Surface(
    irreducible_loss=1.7, params_coefficient=60.0, tokens_coefficient=90.0, alpha=0.25, beta=0.22, outer_exponent=1.5
)
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)

Rows = list[tuple[float, float, float]]


def sweep(
    surface: Surface = TRUTH,
    *,
    noise: float = 0.0,
    sizes: int = 7,
    reach: float = 4.0,
    budgets: tuple[float, ...] = BUDGETS,
) -> Rows:
    """Return (N, D, loss) on IsoFLOP levels from N*/reach to reach N*."""
    draws = np.random.default_rng(3)
    rows = []
    for budget in budgets:
        best = surface.optimal(compute_budget_flops=budget).num_params
        for params in (best * np.geomspace(1 / reach, reach, sizes)).tolist():
            loss = surface.loss(num_params=params, num_tokens=budget / 6 / params)
            rows.append((params, budget / 6 / params, loss * math.exp(draws.normal(0, noise))))
    return rows


def write(path: Path, rows: Rows) -> Path:
    path.write_text("N,D,loss\n" + "".join(f"{n!r},{d!r},{loss!r}\n" for n, d, loss in rows), encoding="utf-8")
    return path


def run(*words: object) -> str:
    return run_command(["fit", *map(str, words), *without_priors(words)])


def without_priors(words: tuple[object, ...]) -> list[str]:
    """Return the flags of the fit that these tests are about: that of the papers."""
    if "--approach" in words and words[words.index("--approach") + 1] in ("1", "2"):
        return []
    return ["--prior", "none", *([] if "--form" in words else ["--form", "additive"])]


def run_json(*words: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run(*words, "--json"))
    return data


def refused(kind: type[ChinchillaError], *words: object) -> tuple[str, ...]:
    with pytest.raises(kind) as caught:
        run(*words)
    return caught.value.problems


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    return write(tmp_path / "exact.csv", sweep())


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    return write(tmp_path / "noisy.csv", sweep(noise=0.004))


def test_the_truth_of_a_noise_free_sweep_comes_back(exact: Path) -> None:
    data = run_json(exact, "--flops", "1e22", "--bootstrap", "0")
    truth = {"E": 1.7, "A": 400, "B": 1000, "alpha": 0.35, "beta": 0.32, "k": 1, "a": 0.32 / 0.67, "b": 0.35 / 0.67}
    assert {name: data[name] for name in truth} == pytest.approx(truth, rel=1e-6)
    best = TRUTH.optimal(compute_budget_flops=1e22)
    wanted = {"flops": 1e22, "num_params": best.num_params, "num_tokens": best.num_tokens, "loss": best.loss}
    assert {name: data["optimal"][name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert data["optimal"]["tokens_per_param"] == pytest.approx(best.num_tokens / best.num_params, rel=1e-6)
    assert data["identifiable"] is True
    assert data["approach"] == [3]
    assert (data["num_points"], data["objective_name"], data["delta"], data["form"]) == (35, "huber", 1e-3, "additive")
    assert data["interval"] is data["standard_errors"] is data["optimal"]["interval"] is data["approach_2"] is None
    assert data["objective"] < 1e-20
    assert data["warnings"] == []


def test_intervals_hold_the_truth_and_come_from_the_seed(noisy: Path) -> None:
    words = (noisy, "--flops", "1e22", "--bootstrap", "60")
    first, same, other = (run_json(*words, "--seed", seed) for seed in (1, 1, 2))
    assert first == same
    assert first["interval"] != other["interval"]
    assert first["interval"]["level"] == first["optimal"]["interval"]["level"] == 0.8
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        low, high = first["interval"][name]
        assert low < first[name] < high
        assert 0 < high - low < 10 * first["standard_errors"][name]
    for name in ("num_params", "num_tokens", "tokens_per_param", "loss"):
        low, high = first["optimal"]["interval"][name]
        assert low < first["optimal"][name] < high


def test_all_approaches_side_by_side(exact: Path) -> None:
    data = run_json(exact, "--approach", "all", "--flops", "1e22", "--bootstrap", "30")
    assert data["approach"] == [1, 2, 3]
    best = TRUTH.optimal(compute_budget_flops=1e22)
    for name in ("approach_1", "approach_2"):
        assert data[name]["a"] == pytest.approx(0.32 / 0.67, abs=1e-6)
        assert data[name]["a"] + data[name]["b"] == pytest.approx(1)
        assert data[name]["num_points"] == 5
        assert data[name]["interval"]["a"][0] < data[name]["a"] < data[name]["interval"]["a"][1]
    assert data["approach_1"]["optimal"]["num_params"] == pytest.approx(best.num_params)  # N* is among the sizes
    bias = data["approach_2"]["optimal"]["num_params"] / best.num_params - 1
    assert data["approach_2_bias"]["num_params"] == pytest.approx(bias, rel=1e-6)
    assert 0.003 < bias < 0.03


def test_a_frontier_alone(exact: Path) -> None:
    data = run_json(exact, "--approach", "2", "--flops", "1e21", "--bootstrap", "20")
    assert data["E"] is data["objective"] is data["gradient_norm"] is data["standard_errors"] is None
    assert data["identifiable"] is True
    assert data["optimal"] == data["approach_2"]["optimal"]
    assert data["optimal"]["loss"] is None
    text = run(exact, "--approach", "2", "--flops", "1e21", "--bootstrap", "20")
    assert "approach 2            N* = " in text
    assert "approach 3 " not in text.split("bias of approach 2")[0]


def test_the_outer_exponent_is_chosen_by_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "skaling.csv", sweep(SKALING, noise=1e-4))
    data = run_json(path, "--form", "auto", "--bootstrap", "0")
    assert data["form"] == "skaling"
    assert data["k"] == pytest.approx(1.5, rel=0.05)
    assert data["hold_out"]["skaling_error"] < data["hold_out"]["additive_error"]
    text = run(path, "--form", "auto", "--bootstrap", "0")
    assert "L = E + (A / N^alpha + B / D^beta)^k" in text
    assert "k is free" in " ".join(text.split())
    assert "\n  k                   1.4" in text or "\n  k                   1.5" in text
    few = write(tmp_path / "few.csv", sweep(sizes=4)[::2])
    data = run_json(few, "--form", "auto", "--bootstrap", "0")
    assert (data["form"], data["hold_out"]) == ("additive", None)
    assert data["warnings"] == ["10 runs are too few to hold some out, so that k stays 1; it takes 12 or more"]


def test_outliers_are_named(tmp_path: Path) -> None:
    rows = sweep(noise=0.003)
    rows[17] = (rows[17][0], rows[17][1], 1.3 * rows[17][2])
    path = write(tmp_path / "wild.csv", rows)
    kept, dropped = (run_json(path, "--outliers", choice, "--bootstrap", "0") for choice in ("keep", "drop"))
    assert (kept["num_points"], kept["dropped"]) == (35, [])
    assert dropped["num_points"] == 34
    assert dropped["dropped"][0].startswith("row 19 (N ")
    assert "left out            1 by the outlier rule" in run(path, "--outliers", "drop", "--bootstrap", "0")
    clean = write(tmp_path / "clean.csv", sweep(noise=0.003))
    assert "left out            none by the outlier rule" in run(clean, "--outliers", "drop", "--bootstrap", "0")


def test_a_notable_bias_of_approach_2_is_a_warning(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.csv", sweep(reach=8.0))
    (warning,) = run_json(wide, "--approach", "2", "--bootstrap", "0", "--flops", "1e22")["warnings"]
    assert warning.startswith("approach 2 is biased: on the surface of approach 3 without any noise")
    narrow = write(tmp_path / "narrow.csv", sweep(reach=2.0))
    assert run_json(narrow, "--approach", "2", "--bootstrap", "0")["warnings"] == []
    assert "bias of approach 2" in run(narrow, "--approach", "2", "--bootstrap", "0")


def test_few_sizes_make_intervals_that_are_not_to_be_believed(tmp_path: Path) -> None:
    """Four sizes drawn four times are fewer than three different ones in a third of the draws."""
    few = write(tmp_path / "few.csv", sweep(sizes=4, budgets=BUDGETS[:3]))
    warnings = run_json(few, "--approach", "2", "--bootstrap", "200")["warnings"]
    assert any("approach 2 gives no power law in 1" in warning for warning in warnings)


def test_a_far_budget_is_a_warning(exact: Path) -> None:
    near, far = (run_json(exact, "--bootstrap", "0", "--flops", flops)["warnings"] for flops in ("2e22", "5e22"))
    assert near == []
    assert far[0].startswith("5e+22 FLOPs lie 500 times above all runs, beyond 300 times")


def test_a_terminal_sees_that_work_goes_on(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    run(exact, "--bootstrap", "10")
    assert "fitting, with 10 draws" in stream.getvalue()


def test_the_command_says_error_and_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "few.csv", sweep()[:3])
    assert main(["fit", str(path), "--json", *without_priors(())]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {path}: has 3 runs, and the fit has 5 constants: at least 5 runs are needed\n"


def test_the_screen(noisy: Path) -> None:
    text = run(noisy, "--approach", "all", "--flops", "1e22", "--bootstrap", "30", "--objective", "squared")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 45
    assert lines[0] == "runs                  35 of noisy.csv"
    assert lines[3] == "  C                   1e+18 to 1e+20 FLOPs"
    for word in ("half the squared log residual", "gradient norm", "standard error", "80% interval", "at 1e+22 FLOPs"):
        assert word in text


def test_the_law_file_is_one_to_plan_with(noisy: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.json"
    data = run_json(noisy, "--out", out, "--params-convention", "non_embedding", "--bootstrap", "40", "--flops", "1e20")
    written = json.loads(out.read_text(encoding="utf-8"))
    assert list(written) == [
        "format", "format_version", "name", "E", "A", "B", "alpha", "beta", "k", "params_convention", "min_flops",
        "max_flops", "covariance", "source",
    ]  # fmt: skip
    assert (written["name"], written["source"]) == ("ours", "noisy.csv")
    assert (written["min_flops"], written["max_flops"]) == pytest.approx((1e18, 1e20))
    assert written["covariance"][3][3] ** 0.5 == pytest.approx(data["standard_errors"]["alpha"])
    law = load_law(out)
    assert law.optimal(compute_budget_flops=1e20).num_params == pytest.approx(data["optimal"]["num_params"])
    assert law.params_convention == "non_embedding"


def test_a_law_without_draws_has_no_covariance(exact: Path, tmp_path: Path) -> None:
    run(exact, "--out", tmp_path / "law.json", "--bootstrap", "0")
    assert load_law(tmp_path / "law.json").covariance is None


def test_a_picture(noisy: Path, tmp_path: Path) -> None:
    run(noisy, "--picture", tmp_path / "fit.png", "--bootstrap", "10")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_the_240_points(tmp_path: Path) -> None:
    """Besiroglu et al. 2024 (arXiv:2404.10102): the sum-Huber optimum, and N*, D* at Chinchilla's budget."""
    path = tmp_path / "240.csv"
    with shared_data("data/scaling/epoch_chinchilla_245.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["excluded_by_epoch"] == "0"]
    write(path, [(float(row["N"]), float(row["D"]), float(row["loss"])) for row in rows])
    data = run_json(path, "--approach", "all", "--flops", "5.76e23", "--bootstrap", "200")
    assert data["num_points"] == 240
    assert data["objective"] <= 0.00101827402
    truth = {"E": 1.81722, "A": 477.826, "B": 2143.417, "alpha": 0.34731, "beta": 0.36717}
    assert {name: data[name] for name in truth} == pytest.approx(truth, rel=1e-5)
    low, high = data["optimal"]["interval"]["num_params"]
    assert low == pytest.approx(57.5e9, rel=0.06)  # 4000 draws: 57.5B to 98.6B
    assert high == pytest.approx(98.6e9, rel=0.06)
    # Hoffmann et al. 2022, Table 2: approach 1 .50, approach 2 .49 (80 % interval .462 to .534), on these and more runs
    low, high = data["approach_2"]["interval"]["a"]
    assert low < 0.49 < high


def test_a_sweep_at_one_ratio_is_refused_with_what_to_add(tmp_path: Path) -> None:
    sizes = np.geomspace(1e7, 1e9, 12).tolist()
    rows = [(n, 20 * n, TRUTH.loss(num_params=n, num_tokens=20 * n)) for n in sizes]
    path = write(tmp_path / "ratio.csv", rows)
    problems = refused(DataError, path, "--json", "--out", tmp_path / "law.json", "--picture", tmp_path / "fit.png")
    assert problems[0].startswith("ratio.csv: approach 3: all runs have about the same D/N (20)")
    assert "add runs at other D/N" in problems[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ratio.csv"]
    assert len(refused(DataError, path, "--approach", "all")) >= 3  # each approach says why


def test_a_frontier_survives_where_the_surface_is_not_identified(tmp_path: Path) -> None:
    """Parabolas so narrow that all runs have nearly one D/N: their minima lie on a line, their surface is anything."""
    rows = []
    for flops in (1e18, 1.2e18, 1.44e18, 1.73e18):
        best = (flops / 120) ** 0.5
        for n in (best * np.geomspace(0.93, 1.07, 5)).tolist():
            rows.append((n, flops / 6 / n, 3.0 - 0.05 * math.log(flops / 1e18) + 2 * math.log(n / best) ** 2))
    path = write(tmp_path / "narrow.csv", rows)
    data = run_json(path, "--approach", "all", "--bootstrap", "0", "--flops", "1e19")
    assert data["identifiable"] is False
    assert data["E"] is data["A"] is data["B"] is data["alpha"] is data["beta"] is data["k"] is data["optimal"] is None
    assert data["approach_2"]["a"] == pytest.approx(0.5)
    assert any(warning.startswith("approach 3: ") for warning in data["warnings"])
    assert "constants           not identified" in run(path, "--approach", "all", "--bootstrap", "0")
    (problem,) = refused(DataError, path, "--approach", "all", "--bootstrap", "0", "--out", tmp_path / "law.json")
    assert "--out needs the surface of approach 3" in problem


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(DataError, tmp_path / "none.csv")[0]
    few = write(tmp_path / "few.csv", sweep()[:4])
    assert refused(DataError, few)[0].endswith("at least 5 runs are needed")
    assert refused(DataError, few, "--form", "skaling")[0].endswith("at least 6 runs are needed")
    same = write(tmp_path / "same.csv", [*sweep(), sweep()[0]])
    assert "row 2 and row 37 are the same run" in refused(DataError, same)[0]
    assert (
        "2 different (N, D)"
        in refused(DataError, write(tmp_path / "twice.csv", [(1e8, 1e9 * (1 + i % 2), 3 + i / 99) for i in range(8)]))[
            0
        ]
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("--approach", "2", "--objective", "lad"),
            "--objective belongs to approach 3 and has no effect on --approach 2",
        ),
        (("--approach", "1", "--out", "x.json"), "--out belongs to approach 3 and has no effect on --approach 1"),
        (("--objective", "lad", "--delta", "0.1"), "--delta belongs to huber and has no effect on --objective lad"),
        (("--bootstrap", "0", "--seed", "1"), "--seed has no effect with --bootstrap 0"),
        (("--params-convention", "total"), "--params-convention has no effect without --out"),
        (("--tracking-uri", "sqlite:///x.db"), "--tracking-uri has no effect on a file"),
        (("--picture", "fit.txt"), "--picture fit.txt must end in one of .png, .svg, .pdf"),
        (("--approach", "4"), "--approach: invalid choice: '4'"),
        (("--flops", "-1"), "--flops: '-1' is not a positive finite number"),
        (("--flops", "7B tokens"), "--flops: '7B tokens' is in tokens, and FLOPs are asked for"),
        (("--bootstrap", "1.5"), "--bootstrap: '1.5' is not a whole number"),
    ],
)
def test_flags_that_make_no_sense(exact: Path, words: tuple[str, ...], problem: str) -> None:
    assert refused(ConfigError, exact, *words)[0].startswith(problem)


def test_points_within_training_curves_are_noticed(tmp_path: Path) -> None:
    """Rows of one name and size are a curve: approach 1 follows it, and the surface is warned of it."""
    lines = ["run,N,D,loss"]
    for n in np.geomspace(1e7, 3e9, 15).tolist():
        for d in np.geomspace(1e9, 3e11, 20).tolist():
            lines.append(f"{n:.3g},{n!r},{d!r},{TRUTH.loss(num_params=n, num_tokens=d)!r}")
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    data = run_json(path, "--approach", "1", "--bootstrap", "0")
    assert data["a"] is None
    assert data["approach_1"]["a"] == pytest.approx(0.32 / 0.67, abs=0.02)
    assert data["approach_1"]["num_points"] > 500
    assert data["warnings"] == []
    (warning,) = run_json(path, "--bootstrap", "0")["warnings"]
    assert warning.startswith("300 rows share a run's name and N")


def test_one_draw_is_none(exact: Path) -> None:
    assert "at least 2 draws" in refused(DataError, exact, "--bootstrap", "1")[0]


def test_files_that_cannot_be_written(exact: Path, tmp_path: Path) -> None:
    for flag, name in (("--out", "law.json"), ("--picture", "fit.png")):
        (problem,) = refused(OutputError, exact, "--bootstrap", "0", flag, tmp_path / "nowhere" / name)
        assert problem.startswith(f"{flag} {tmp_path}/nowhere/{name} cannot be written: No such file or directory")


def log_run(uri: str, *, name: str, params: dict[str, object], metrics: dict[str, float], finished: bool) -> None:
    folder = Path(tempfile.mkdtemp(dir=Path(uri.removeprefix("sqlite:///")).parent))
    backend = JsonlBackend(path=folder / "metrics.jsonl")
    backend.log_params(params)
    backend.write([MetricRecord(metrics={"held_out/loss": 99.0}, step=1, time_s=time.time())])
    backend.write([MetricRecord(metrics=metrics, step=2, time_s=time.time())])
    destination = MlflowDestination(tracking_uri=uri, run_name=name, experiment="sweep")
    track(destination=destination, run_folder=folder, status=RunStatus.FINISHED if finished else RunStatus.FAILED)
    backend.close(RunStatus.FINISHED)


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_an_mlflow_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for params, tokens, loss in sweep(sizes=4):
        log_run(
            uri,
            name="tiny",  # names need not be unique
            params={"num_params": params, "num_tokens": tokens},
            metrics={"held_out/loss": loss, "flops": 7 * params * tokens},
            finished=True,
        )
    log_run(uri, name="lost", params={"num_params": 1e8}, metrics={"held_out/loss": 3.0}, finished=True)
    log_run(uri, name="broken", params={"num_params": 1e8, "num_tokens": 1e9}, metrics={}, finished=False)

    data = run_json("mlflow:sweep", "--tracking-uri", uri, "--bootstrap", "0")
    assert data["num_points"] == 20
    assert (data["source"], data["alpha"]) == ("mlflow:sweep", pytest.approx(0.35, rel=1e-6))
    assert data["warnings"][0].startswith("1 of 21 finished runs have not logged num_params")
    assert len(data["warnings"]) == 2
    assert data["warnings"][1].startswith("the runs' FLOPs are 1.17 times 6 N D on average")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "has no experiment 'swep'; it has" in refused(DataError, "mlflow:swep")[0]
    assert "did you mean 'sweep'?" in refused(DataError, "mlflow:swep")[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@localhost:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (problem,) = refused(DataError, "mlflow:sweep")
    assert problem.startswith("MLflow at http://***@localhost:1 cannot be read: ")
    assert "secret" not in problem


def test_mlflow_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (problem,) = refused(ConfigError, "mlflow:sweep")
    assert problem == "mlflow:sweep: set MLFLOW_TRACKING_URI or --tracking-uri; there is no runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nothing.db")
    assert refused(DataError, "mlflow:sweep")[0].endswith("cannot be read: there is no such file")
    assert list(tmp_path.iterdir()) == []
