"""A running run's outlook and band: on synthetic and public curves with the noise of batches, clean and broken."""

from array import array

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.departure import BandDeparture, LossWatch
from chinchilla_ds.budget.laws.curves.outlook import ScheduleTable, fit_outlook
from chinchilla_ds.budget.laws.fitting.runs import Floats
from tests.unit.budget.laws.curves.runs import PUBLIC_WARMUP, TRUTH, WARMUP, public_curves, schedule, synthetic

TOTAL = 4000
NOISE = 0.02
"""Standard deviation of a batch's loss, relative."""


def _losses(kind: str = "cosine", *, seed: int = 0, noise: float = NOISE) -> Floats:
    """Return the losses of steps WARMUP to TOTAL - 1."""
    return synthetic(kind, total=TOTAL, every=1, noise=noise, seed=seed).loss


def _watch(kind: str = "cosine") -> LossWatch:
    rates = schedule(kind, total=TOTAL)
    return LossWatch(
        lambda: ScheduleTable.of(rates, warmup_steps=WARMUP), warmup_steps=WARMUP, train_iters=len(rates) - 1
    )


def _first_departure(watch: LossWatch, losses: Floats, *, first: int = WARMUP) -> tuple[int, BandDeparture] | None:
    """Return the step at which the loss is first found above the band."""
    for step, loss in enumerate(losses.tolist(), first):
        watch.add(loss, step=step)
        if watch.departure is not None:
            return step, watch.departure
    return None


@pytest.mark.parametrize("kind", ["cosine", "constant", "linear", "jump"])
def test_a_clean_run_never_leaves_its_band_whatever_its_schedule(kind: str) -> None:
    for seed in range(5):
        assert _first_departure(_watch(kind), _losses(kind, seed=seed)) is None


@pytest.mark.parametrize("at", [600, 1500, 3100, 3900])
@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_a_loss_that_rises_is_found_within_20_steps(at: int, noise: float) -> None:
    losses = _losses(noise=noise)
    losses[at - WARMUP :] *= 1.08
    found = _first_departure(_watch(), losses)
    assert found is not None
    step, departure = found
    assert at - 5 <= departure.since <= step < at + 20
    assert departure.until is None


def test_what_is_said_of_a_departure() -> None:
    assert str(BandDeparture(since=3100, excess=0.0812)) == "0.08 above the 95 % band since step 3,100"
    assert (
        str(BandDeparture(since=300, excess=0.5, until=1340))
        == "0.50 above the 95 % band since step 300, until step 1,340"
    )


def test_the_law_does_not_follow_a_loss_that_stays_high_and_the_end_is_told() -> None:
    watch, losses = _watch(), _losses()
    losses[1000:2000] *= 1.1
    until = None
    for step, loss in enumerate(losses.tolist(), WARMUP):
        watch.add(loss, step=step)
        if step == 2000 + WARMUP - 1:
            assert watch.is_above
        if until is None and watch.departure is not None:
            until = watch.departure.until
    assert watch.departure is not None
    assert watch.departure.since == pytest.approx(1000 + WARMUP, abs=3)
    assert until == pytest.approx(2000 + WARMUP, abs=3)
    assert watch.departure.excess == pytest.approx(0.1 * losses[1500] / 1.1, abs=0.2)


def test_a_loss_that_falls_faster_is_no_departure() -> None:
    losses = _losses()
    losses[1000:] *= 0.9
    assert _first_departure(_watch(), losses) is None


def test_the_band_of_single_losses_holds_95_percent() -> None:
    shares = []
    for seed in range(3):
        watch, inside = _watch(), []
        for step, loss in enumerate(_losses(seed=seed).tolist(), WARMUP):
            watch.add(loss, step=step)
            if watch.point is not None:
                inside.append(watch.point.low <= loss <= watch.point.high)
        shares.append(np.mean(inside))
    assert 0.93 <= np.mean(shares) <= 0.985


def test_a_run_that_goes_back_forgets_what_came_after() -> None:
    losses, broken, plain = _losses(), _watch(), _watch()
    assert _first_departure(plain, losses) is None
    bad = losses.copy()
    bad[1000:] *= 1.2
    assert _first_departure(broken, bad) is not None
    assert _first_departure(broken, losses[900:], first=WARMUP + 900) is None
    assert broken.point is not None
    assert plain.point is not None
    assert broken.point.loss == pytest.approx(plain.point.loss, rel=0.01)


def test_a_resumed_run_knows_its_beginning_and_its_departure() -> None:
    losses, steps = _losses(), list(range(WARMUP, TOTAL))
    losses[1000:] *= 1.1
    whole = _watch()
    for step, loss in zip(steps[:1500], losses[:1500].tolist(), strict=True):
        whole.add(loss, step=step)
    resumed = _watch()
    resumed.resume(array("q", steps[:1500]), array("d", losses[:1500]), above=whole.departure)
    assert resumed.is_above
    for step, loss in zip(steps[1500:], losses[1500:].tolist(), strict=True):
        for watch in (whole, resumed):
            watch.add(loss, step=step)
    assert resumed.departure is not None
    assert whole.departure is not None
    assert resumed.departure.since == whole.departure.since
    assert resumed.departure.excess == pytest.approx(whole.departure.excess, abs=0.05)


def test_the_outlook_of_the_beginning_holds_the_end() -> None:
    """The spread shrinks as the run goes on its way, and the end lies within two of them."""
    rates, losses = schedule("cosine", total=TOTAL), _losses(noise=0.005)
    end = _losses(noise=0.0)[-1]
    table = ScheduleTable.of(rates, warmup_steps=WARMUP)
    spreads = []
    for share in (0.15, 0.3, 0.6, 0.9):
        count = round(share * TOTAL) - WARMUP
        outlook = fit_outlook(table, step=np.arange(WARMUP, WARMUP + count), loss=losses[:count])
        mean, spread = outlook.mean_and_spread(TOTAL - 1)
        assert abs(mean - end) < 2 * spread
        spreads.append(spread / end)
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.03 > 0.01 > spreads[-1]


def test_the_table_of_a_schedule_has_the_sums_of_the_law() -> None:
    rates = schedule("linear", total=TOTAL)
    table = ScheduleTable.of(rates, warmup_steps=WARMUP)
    steps = np.array([WARMUP, 1234.0, TOTAL - 1])
    total, annealed = table.at(steps)
    assert total == pytest.approx(np.cumsum(rates)[steps.astype(int)], rel=1e-3)
    assert annealed[1] == pytest.approx(annealed[0], abs=1.0), "only the warm-up's rises so far"
    assert annealed[-1] > annealed[1] + 0.3, "most of a fall of 0.9"
    assert TRUTH["C"] == 1.0


@pytest.mark.parametrize("size", ["25M", "100M"])
def test_no_public_run_leaves_its_band(size: str) -> None:
    """The logged losses, with a batch's noise, at every 24th step: 9 runs of 16,000 to 72,000 steps."""
    for name, curve in public_curves(size).items():
        steps = np.arange(curve.step[0] + 10, curve.step[-1], 24)
        smooth = np.exp(np.interp(steps, curve.step, np.log(curve.loss)))
        losses = smooth * np.exp(NOISE * np.random.default_rng(1).standard_normal(len(steps)))
        rates = np.diff(np.r_[0, curve.drops.total])
        watch = LossWatch(
            lambda rates=rates: ScheduleTable.of(rates, warmup_steps=PUBLIC_WARMUP),
            warmup_steps=PUBLIC_WARMUP,
            train_iters=int(curve.step[-1]),
        )
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
            watch.add(loss, step=step)
            assert watch.departure is None, (name, step, watch.departure)
