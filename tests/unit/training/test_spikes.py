import random
from statistics import median

import pytest

from chinchilla_ds.training.spikes import (
    LASTING,
    LEAST_LOSSES,
    MAX_REWINDS,
    WINDOW,
    SpikeDetector,
    Verdict,
    rewind_of,
)


def falling(steps: int, *, noise: float = 0.05, seed: int = 0) -> list[float]:
    """A loss that falls as a power of the step, with normal noise."""
    draw = random.Random(seed)
    return [2.0 + 8.0 * (step + 10) ** -0.3 + draw.gauss(0.0, noise) for step in range(steps)]


def verdicts(losses: list[float]) -> list[Verdict]:
    detector = SpikeDetector()
    return [detector.add(loss, iteration=step + 1) for step, loss in enumerate(losses)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
def test_an_ordinary_run_has_no_high_loss(noise: float) -> None:
    for seed in range(10):
        assert set(verdicts(falling(2000, noise=noise, seed=seed))) == {Verdict.ORDINARY}


def test_one_outlier_is_high_and_no_spike() -> None:
    losses = falling(500)
    losses[300] += 3.0
    said = verdicts(losses)
    assert said[300] is Verdict.HIGH
    assert Verdict.SPIKE not in said
    assert said.count(Verdict.HIGH) == 1


def test_a_spike_is_said_once_when_it_has_lasted() -> None:
    losses = falling(500)
    for step in range(300, 340):
        losses[step] += 2.0
    detector = SpikeDetector()
    said = [detector.add(loss, iteration=step + 1) for step, loss in enumerate(losses[:340])]
    assert [step for step, verdict in enumerate(said) if verdict is Verdict.SPIKE] == [300 + LASTING - 1]
    assert detector.spike is not None
    assert detector.spike.began == 301
    assert detector.spike.level == median(losses[300 - WINDOW : 300])
    assert detector.spike.peak == max(losses[300:340])
    assert str(detector.spike).startswith("loss spike since step 301: ")
    assert detector.add(losses[340], iteration=341) is Verdict.ORDINARY
    assert detector.spike is None


def test_nothing_is_said_before_there_are_losses_to_compare_with() -> None:
    assert set(verdicts([2.0] * (LEAST_LOSSES - 20) + [9.0] * 19)) == {Verdict.ORDINARY}
    assert Verdict.SPIKE in verdicts([2.0] * LEAST_LOSSES + [9.0] * 20)


def test_a_level_that_stays_becomes_the_usual_one() -> None:
    said = verdicts([2.0] * 200 + [9.0] * 400)
    assert said.count(Verdict.SPIKE) == 1
    assert said[-1] is Verdict.ORDINARY


def test_a_rewind_goes_back_before_the_spike_and_leaves_the_data_where_it_is() -> None:
    detector = SpikeDetector()
    for step, loss in enumerate([2.0] * 100 + [9.0] * LASTING):
        detector.add(loss, iteration=step + 1)
    assert detector.spike is not None
    rewind = rewind_of(detector.spike, data_step=107, rewinds=0)
    assert rewind is not None
    assert (rewind.before, rewind.data_step) == (100, 107)
    assert rewind_of(detector.spike, data_step=107, rewinds=MAX_REWINDS) is None
