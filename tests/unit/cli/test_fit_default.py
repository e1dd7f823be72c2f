"""`chinchilla-ds fit` as it is without flags: predictions, a hold-out, and one interval in every command."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_ds import RunConfig, plan
from chinchilla_ds.budget.laws.fitting.surface import Surface
from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.budget.laws.lookup import load_law
from chinchilla_ds.budget.shape.parameters import params_in_convention
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.errors import ConfigError, DataError
from tests.shared_data import shared_data
from tests.unit.cli.test_fit import log_run

CURVED = Surface(
    irreducible_loss=1.95, params_coefficient=6e7, tokens_coefficient=4e7, alpha=0.93, beta=0.77, outer_exponent=0.47
)


def write(path: Path, *, sizes: int = 7, noise: float = 0.003) -> Path:
    """Write a sweep of `sizes` by `sizes` runs of a law with k = 0.47."""
    draws = np.random.default_rng(1)
    rows = ["N,D,loss"]
    for n in np.geomspace(2e7, 2e9, sizes).tolist():
        for d in np.geomspace(4e8, 4e10, sizes).tolist():
            loss = CURVED.loss(num_params=n, num_tokens=d) * math.exp(draws.normal(0, noise))
            rows.append(f"{n!r},{d!r},{loss!r}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def run_json(*words: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run_command(["fit", *map(str, words), "--json"]))
    return data


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "sweep.csv")


def test_predictions_in_the_order_asked(table: Path) -> None:
    asked = ("--predict", "70e9,1.4e12", "--predict", "7B,140B", "--predict", "1e8,2e9")
    predictions = run_json(table, *asked)["predictions"]
    assert [(one["num_params"], one["num_tokens"]) for one in predictions] == [
        (70e9, 1.4e12),
        (7e9, 1.4e11),
        (1e8, 2e9),
    ]
    for one in predictions:
        assert list(one) == ["num_params", "num_tokens", "loss", "low", "high", "level"]
        truth = CURVED.loss(num_params=one["num_params"], num_tokens=one["num_tokens"])
        assert one["low"] < truth < one["high"]
        assert one["loss"] == pytest.approx(truth, rel=0.02)
        assert one["level"] == 0.8
    widths = [one["high"] / one["low"] for one in predictions]
    assert widths == sorted(widths, reverse=True)  # the farther, the wider
    assert run_json(table)["predictions"] == []
    assert "predicted loss" in run_command(["fit", str(table), *asked])


def test_the_default_is_a_free_k_with_weak_priors(table: Path) -> None:
    default = run_json(table, "--predict", "70e9,1.4e12")
    assert (default["form"], default["prior"]) == ("skaling", "weak")
    assert default["k"] == pytest.approx(0.47, abs=0.15)
    (warning,) = default["warnings"]
    assert warning.startswith("5.88e+23 FLOPs lie 1.22e+03 times above all runs")
    assert list(default["prior_ratios"]) == ["alpha k", "beta k", "log k", "E / least loss"]
    assert run_json(table, "--predict", "70e9,1.4e12", "--form", "auto") == default
    additive = run_json(table, "--predict", "70e9,1.4e12", "--form", "additive", "--prior", "none", "--bootstrap", "40")
    truth = CURVED.loss(num_params=70e9, num_tokens=1.4e12)
    errors = [abs(math.log(data["predictions"][0]["loss"] / truth)) for data in (default, additive)]
    assert errors[0] < 0.5 * errors[1]
    with_priors = run_json(table, "--form", "additive")
    assert (with_priors["k"], with_priors["form"], with_priors["prior"]) == (1, "additive", "weak")


def test_the_seed_fixes_the_draws(table: Path) -> None:
    first, same, other = (run_json(table, "--seed", seed)["interval"] for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_plan_laws_fit_and_file_have_one_interval(table: Path, tmp_path: Path) -> None:
    """The loss interval of `plan` at its N and D is what `fit --predict` says of them; so is that of `laws`."""
    out = tmp_path / "ours.json"
    flops = "1e22"
    fitted = run_json(table, "--out", out, "--flops", flops)["optimal"]
    made = plan(RunConfig(compute_budget_flops=1e22, law=str(out)))
    num_params = params_in_convention(shape=made.shape, convention=ParamsConvention.TOTAL)
    (asked,) = run_json(table, "--predict", f"{num_params!r},{made.num_tokens!r}")["predictions"]
    assert made.prediction.loss == pytest.approx(asked["loss"], rel=1e-6)
    assert made.prediction.interval.loss == pytest.approx([asked["low"], asked["high"]], rel=1e-4)
    law = load_law(out)
    interval = law.optimal_interval(compute_budget_flops=1e22)
    assert interval.num_params == pytest.approx(fitted["interval"]["num_params"], rel=1e-3)
    at_best = law.loss_interval(num_params=fitted["num_params"], num_tokens=fitted["num_tokens"])
    assert at_best == pytest.approx(fitted["interval"]["loss"], rel=1e-4)
    rows = json.loads(run_command(["laws", "--law", str(out), "--flops", flops, "--json"]))["overtraining"]["rows"]
    (optimum,) = [row for row in rows if row["size_factor"] == 1]
    assert optimum["loss_interval"] == pytest.approx(fitted["interval"]["loss"], rel=1e-4)
    assert "80% interval" in run_command(["laws", "--law", str(out), "--flops", flops])


def test_draws_with_e_near_0_do_not_make_the_plan_s_interval_explode(tmp_path: Path) -> None:
    """Where E is barely known, `fit` and `plan` still say the same, and something that can be used."""
    runs, out = write(tmp_path / "few.csv", sizes=4, noise=0.02), tmp_path / "few.json"
    fitted = run_json(runs, "--out", out, "--flops", "1e21")["optimal"]["interval"]["loss"]
    low, high = plan(RunConfig(compute_budget_flops=1e21, law=str(out))).prediction.interval.loss
    assert (low, high) == pytest.approx(fitted, rel=0.02)
    assert high / low < 1.4


def test_the_law_file_keeps_the_draws(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.json"
    data = run_json(table, "--out", out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert list(written)[-4:] == ["source", "scatter", "dearest_flops", "draws"]
    assert "covariance" not in written
    assert written["dearest_flops"] == pytest.approx(6 * 2e9 * 4e10)
    draws = np.array(written["draws"])
    assert draws.shape == (480, 6)
    assert draws[:, 3].std() == pytest.approx(data["standard_errors"]["alpha"], rel=1e-4)
    assert draws[:, 5].std() > 0
    # scatter of the runs: 0.3 % normal noise has a mean absolute value of 0.24 %
    assert written["scatter"] == pytest.approx(0.003 * math.sqrt(2 / math.pi), rel=0.4)
    assert out.stat().st_size < 100_000


def test_a_free_k_without_priors_keeps_its_draws_too(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "free.json"
    run_json(table, "--out", out, "--form", "skaling", "--prior", "none", "--bootstrap", "40")
    law = load_law(out)
    assert law.covariance is None
    assert len(law.uncertainty.draws) == 40


def test_hold_out(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.json"
    data = run_json(table, "--hold-out", "10x", "--out", out)
    held_out = data["held_out"]
    assert held_out["num_fitted"] + held_out["num_held_out"] == 49 == data["num_points"]
    assert held_out["factor"] == 10
    compute = [run["num_params"] * run["num_tokens"] for run in held_out["runs"]]
    assert compute == sorted(compute)
    assert min(compute) > 2e9 * 4e10 / 10
    errors = [abs(math.log(run["loss"] / run["measured"])) for run in held_out["runs"]]
    assert held_out["median_error"] == pytest.approx(np.median(errors))
    assert held_out["worst_error"] == pytest.approx(max(errors))
    inside = [run["low"] <= run["measured"] <= run["high"] for run in held_out["runs"]]
    assert held_out["coverage"] == pytest.approx(np.mean(inside))
    assert inside == [run["inside"] for run in held_out["runs"]]
    assert held_out["median_error"] < 0.01
    sentence = (
        f"this law missed the other {held_out['num_held_out']} by {held_out['median_error']:.1%} (median; worst "
        f"{held_out['worst_error']:.1%}), at up to {held_out['times']:.3g}x the "
        "compute of the most expensive fitted run"
    )
    for words in (["fit", str(table), "--hold-out", "10"], ["plan", "--law", str(out), "--flops", "1e20"]):
        assert sentence in " ".join(run_command(words).split())
    assert load_law(out).remark.startswith("fitted to the")


def test_a_hold_out_that_leaves_too_little(tmp_path: Path) -> None:
    runs = write(tmp_path / "few.csv", sizes=4)
    with pytest.raises(DataError) as caught:
        run_json(runs, "--hold-out", "1000x")
    (problem,) = caught.value.problems
    assert problem.startswith(
        "few.csv: --hold-out 1000x leaves 3 of 16 runs to fit: 3 runs are too few for a law with an interval; it takes "
    )
    factor = problem.removesuffix(" leaves 8").rpartition(" ")[2]
    assert run_json(runs, "--hold-out", factor)["held_out"]["num_fitted"] == 8
    few = tmp_path / "eight.csv"
    few.write_text("\n".join(runs.read_text().splitlines()[:9]), encoding="utf-8")
    with pytest.raises(DataError, match=r"it takes 8 or more$"):
        run_json(few, "--hold-out", "4x")


def test_a_prediction_far_beyond_all_runs_is_marked(table: Path) -> None:
    """The dearest of these runs has 6 x 2e9 x 4e10 = 4.8e20 FLOPs."""
    asked = run_json(table, "--predict", "7B,140B", "--predict", "1T,20T")["warnings"]
    assert [text for text in asked if "times above all runs" in text] == [
        "1.2e+26 FLOPs lie 2.5e+05 times above all runs, beyond 300 times: the intervals hold only if the form of the "
        "law does"
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--bootstrap", "100"), "--bootstrap belongs to --prior none and has no effect on the default"),
        (("--objective", "lad"), "--objective belongs to --prior none"),
        (("--delta", "1e-2"), "--delta belongs to --prior none"),
        (("--approach", "2", "--predict", "1e9,1e10"), "--predict belongs to approach 3"),
        (("--approach", "1", "--hold-out", "4x"), "--hold-out belongs to approach 3"),
        (("--approach", "1", "--prior", "none"), "--prior belongs to approach 3"),
        (
            ("--prior", "none", "--bootstrap", "0", "--hold-out", "4x"),
            "--hold-out needs draws for its intervals: drop --bootstrap 0",
        ),
        (("--predict", "7e9"), "--predict: '7e9' is not N,D: parameters and tokens, such as 7B,140B"),
        (("--predict", "7e9,x"), "--predict: 'x' is not a"),
        (("--predict", "7B,140"), "--predict: '140' of '7B,140' is below 1000; is it in millions or billions?"),
        (("--hold-out", "1x"), "--hold-out: '1x' must be above 1"),
        (("--hold-out", "x4"), "--hold-out: 'x4' is not a factor such as 4x"),
        (("--prior", "strong"), "--prior: invalid choice: 'strong'"),
    ],
)
def test_flags_that_make_no_sense(table: Path, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_command(["fit", str(table), *words])
    assert caught.value.problems[0].startswith(problem)


@pytest.mark.parametrize("words", [(), ("--form", "additive", "--prior", "none", "--bootstrap", "40")])
def test_a_diverged_run_is_named_with_the_flag(table: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """One loss of 49 doubled: the fit goes on, names the row and the flag, and with the flag leaves it out."""
    lines = table.read_text(encoding="utf-8").splitlines()
    num_params, num_tokens, loss = lines[20].split(",")
    lines[20] = f"{num_params},{num_tokens},{2 * float(loss)!r}"
    path = tmp_path / "diverged.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    (warning,) = [text for text in run_json(path, *words)["warnings"] if "--outliers drop" in text]
    assert "row 21" in warning
    dropped = run_json(path, *words, "--outliers", "drop")
    assert dropped["num_points"] == 48
    assert dropped["dropped"][0].startswith("row 21 (N ")


def test_too_few_runs_for_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("\n".join(write(tmp_path / "all.csv").read_text().splitlines()[:8]), encoding="utf-8")
    assert main(["fit", str(path), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "7 runs are too few for a law with an interval; it takes 8 or more" in shown.err


def test_an_approach_beside_it_still_has_its_bootstrap(table: Path) -> None:
    data = run_json(table, "--approach", "all", "--bootstrap", "10")
    assert data["prior"] == "weak"
    assert data["interval"]["level"] == 0.8


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_a_hold_out_of_an_mlflow_experiment_is_logged_there(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    rows = csv.DictReader(write(tmp_path / "runs.csv", sizes=4).read_text().splitlines())
    for row in rows:
        log_run(
            uri,
            name="tiny",
            params={"num_params": float(row["N"]), "num_tokens": float(row["D"])},
            metrics={"held_out/loss": float(row["loss"])},
            finished=True,
        )
    words = ("mlflow:sweep", "--tracking-uri", uri, "--hold-out", "4x")
    first, again = run_json(*words), run_json(*words)  # which reads none of what the first logged
    assert first == again
    assert first["num_points"] == 16
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sweep")
    logged = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == "fit"]
    assert len(logged) == 2
    assert logged[0].data.metrics["hold_out/median_error"] == pytest.approx(first["held_out"]["median_error"])
    assert logged[0].data.metrics["hold_out/coverage"] == pytest.approx(first["held_out"]["coverage"])
    (table,) = Path(logged[0].info.artifact_uri.removeprefix("file://")).glob("hold_out.json")
    assert json.loads(table.read_text(encoding="utf-8"))["runs"] == first["held_out"]["runs"]


# ---- public tables


CELLS = (
    ("datablations_c4_runs.csv", 30, {"epochs": lambda text: float(text) <= 1}, 0.5),
    ("porian_isoflop_rw_standard.csv", 10, {"decay": lambda text: text == "chinchilla"}, 0.5),
    ("porian_isoflop_rw_standard.csv", 10, {"decay": lambda text: text == "const"}, 0.5),
)
"""Table, factor, the rows taken, and what the error over that of the additive form must stay below."""


@pytest.mark.parametrize("cell", CELLS, ids=["datablations", "porian chinchilla", "porian const"])
def test_dear_runs_of_public_tables(cell: tuple[Any, ...], tmp_path: Path) -> None:
    """`benchmarks/predictions.py` in small: fitted below 1/f of the dearest, judged from 4 times the fitted ones on."""
    name, factor, conditions, most = cell
    with shared_data(f"data/scaling/{name}").open(newline="", encoding="utf-8") as lines:
        taken = [row for row in csv.DictReader(lines) if all(test(row[key]) for key, test in conditions.items())]
    runs = np.array([[float(row[column]) for column in ("N", "D", "loss")] for row in taken])
    compute = runs[:, 0] * runs[:, 1]
    cheap = compute < compute.max() / factor
    dear = runs[compute >= 4 * compute[cheap].max()]
    path = tmp_path / "cheap.csv"
    path.write_text("N,D,loss\n" + "".join(f"{n!r},{d!r},{loss!r}\n" for n, d, loss in runs[cheap].tolist()))
    asked = [word for n, d, _ in dear.tolist() for word in ("--predict", f"{n!r},{d!r}")]
    errors = []
    for words in ((), ("--form", "additive", "--prior", "none", "--bootstrap", "20")):
        predictions = run_json(path, *asked, *words)["predictions"]
        misses = [
            abs(math.log(one["loss"] / measured)) for one, (_, _, measured) in zip(predictions, dear, strict=True)
        ]
        errors.append(float(np.median(misses)))
        if not words:
            inside = [
                one["low"] <= measured <= one["high"] for one, (_, _, measured) in zip(predictions, dear, strict=True)
            ]
            assert np.mean(inside) >= 0.8
    assert errors[0] < most * errors[1]
