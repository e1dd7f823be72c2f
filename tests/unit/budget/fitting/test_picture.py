"""The picture is checked by what is drawn, not by its pixels."""

import functools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from chinchilla_ds.budget.laws.fitting import picture
from chinchilla_ds.budget.laws.fitting.analysis import FitRequest, analyse
from chinchilla_ds.budget.laws.fitting.result import FitReport
from chinchilla_ds.budget.laws.fitting.runs import run_table
from chinchilla_ds.budget.laws.fitting.surface import Form, Prior, Surface
from chinchilla_ds.errors import ConfigError, OutputError

SURFACE = Surface(irreducible_loss=1.7, params_coefficient=400.0, tokens_coefficient=1000.0, alpha=0.35, beta=0.32)
WITHOUT_PRIORS = {"form": Form.ADDITIVE, "prior": Prior.NONE}
BUDGETS = (1e18, 1e19, 1e20, 1e21)


@functools.cache
def report(*, approaches: tuple[int, ...], draws: int = 0, budgets: tuple[float, ...] = BUDGETS) -> FitReport:
    optima = [SURFACE.optimal(compute_budget_flops=budget).num_params for budget in budgets]
    params = np.array([best * factor for best in optima for factor in np.geomspace(0.25, 4.0, 7)])
    tokens = np.repeat(budgets, 7) / 6 / params
    loss = [SURFACE.loss(num_params=n, num_tokens=d) for n, d in zip(params.tolist(), tokens.tolist(), strict=True)]
    noise = np.random.default_rng(0).normal(0, 0.002, len(params))
    runs = run_table(num_params=params, num_tokens=tokens, loss=np.array(loss) * np.exp(noise))
    request = FitRequest(approaches=approaches, num_draws=draws, compute_budget_flops=1e22, **WITHOUT_PRIORS)
    return analyse(runs, source="sweep.csv", request=request)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures that are written."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(("suffix", "start"), [(".PNG", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_names_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"fit{suffix}"
    picture.write_picture(report(approaches=(2,)), path)
    assert path.read_bytes().startswith(start)


def test_what_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    found = report(approaches=(1, 2, 3), draws=20)
    picture.write_picture(found, tmp_path / "fit.png")
    profiles, frontier = drawn[0].axes
    assert drawn[0].get_suptitle().startswith("28 runs of sweep.csv:  E = 1.7")
    levels = ["1.0e+21 FLOPs", "1.0e+20 FLOPs", "1.0e+19 FLOPs", "1.0e+18 FLOPs"]
    assert labels(profiles) == ["minimum, approach 3", "minimum, approach 2", *levels]
    assert (profiles.get_xlabel(), profiles.get_ylabel()) == ("parameters N", "loss (nats per token)")
    assert (frontier.get_xlabel(), frontier.get_ylabel()) == ("training compute C (FLOPs)", "parameters N")
    names = " ".join(labels(frontier))
    assert all(f"approach {number}, $N^*" in names for number in (1, 2, 3))
    assert "80% interval of approach 3" in names
    assert all(law in names for law in picture.COMPARED_LAWS)
    low, high = frontier.get_xlim()
    assert low < 1e18
    assert high > 1e22


def test_the_curves_are_the_fitted_surface_at_the_level(tmp_path: Path, drawn: list[Figure]) -> None:
    found = report(approaches=(3,))
    picture.write_picture(found, tmp_path / "fit.png")
    (curve,) = [line for line in drawn[0].axes[0].lines if line.get_label() == "1.0e+19 FLOPs"]
    assert found.law is not None
    for size, loss in list(zip(*curve.get_data(), strict=True))[::50]:
        assert loss == pytest.approx(found.law.loss(num_params=size, num_tokens=1e19 / 6 / size))
    (stars,) = [line for line in drawn[0].axes[0].lines if line.get_label() == "minimum, approach 3"]
    best = [found.law.optimal(compute_budget_flops=budget).num_params for budget in BUDGETS]
    assert stars.get_xdata() == pytest.approx(best)


def test_without_approach_3_parabolas_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    picture.write_picture(report(approaches=(2,), draws=20), tmp_path / "fit.png")
    profiles, frontier = drawn[0].axes
    assert labels(profiles)[0] == "minimum, approach 2"
    assert len(labels(profiles)) == 5
    assert "approach 3" not in " ".join(labels(frontier))
    assert len(frontier.collections) == 2  # the runs, and approach 2's band


def test_runs_without_levels_are_still_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(1)
    params, tokens = 10 ** rng.uniform(7, 10, 12), 10 ** rng.uniform(9, 11.5, 12)
    loss = [SURFACE.loss(num_params=n, num_tokens=d) for n, d in zip(params.tolist(), tokens.tolist(), strict=True)]
    found = analyse(
        run_table(num_params=params, num_tokens=tokens, loss=loss),
        source="x",
        request=FitRequest(num_draws=0, **WITHOUT_PRIORS),
    )
    picture.write_picture(found, tmp_path / "fit.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no compute level has four sizes"]


def test_at_most_nine_levels() -> None:
    found = report(approaches=(2,), budgets=tuple(np.geomspace(1e18, 1e22, 14).tolist()))
    levels = picture.drawn_levels(found)
    assert len(levels) == picture.MAX_LEVELS
    assert [level.flops for level in levels] == sorted(level.flops for level in levels)


def test_another_suffix_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`picture=fit.bmp` must end in one of .png, .svg, .pdf"):
        picture.check_picture_name(Path("fit.bmp"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"`picture=.*nowhere/fit.png` cannot be written: No such file or directory"):
        picture.write_picture(report(approaches=(2,)), tmp_path / "nowhere" / "fit.png")
