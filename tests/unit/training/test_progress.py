import io
from pathlib import Path

import pytest

from chinchilla_ds.training.callback import TrainingState
from chinchilla_ds.training.callbacks.progress import ProgressCallback, SpeedMeter, describe_step
from tests.unit.training.states import STEP_S, TOKENS_PER_STEP, evaluate, make_state, take_step


def run(callback: ProgressCallback, *, state: TrainingState, steps: int) -> None:
    callback.on_train_start(state)
    for _ in range(steps):
        take_step(state, loss=4.25)
        callback.on_step_end(state)
    evaluate(state, loss=4.5, bits_per_byte=2.25)
    callback.on_evaluation_end(state)
    callback.on_train_end(state)
    callback.on_close()


def test_a_log_gets_plain_lines_and_no_control_characters(tmp_path: Path) -> None:
    stream = io.StringIO()
    run(ProgressCallback(stream=stream), state=make_state(tmp_path, train_iters=1000), steps=1000)
    lines = stream.getvalue().splitlines()
    assert all(character.isprintable() for line in lines for character in line)
    assert 20 <= len(lines) <= 24
    assert lines[0].startswith("step    1/1000 | loss 4.2500 | 8.19K tokens/s | 4.10e+10 of 4.10e+13 FLOPs (0%) | ")
    assert lines[-2].startswith("step 1000/1000 | ")
    assert lines[-1] == "step 1000/1000 | held-out loss 4.5000 nats/token, 2.2500 bits/byte"


@pytest.mark.parametrize("columns", [130, 80])
def test_a_terminal_gets_a_bar_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    run(ProgressCallback(stream=stream, terminal=True), state=make_state(tmp_path), steps=100)
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "100/100" in text
    assert ("\u2501" in text) == (columns == 130)


def test_ranks_that_do_not_own_the_loss_print_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    state = make_state(tmp_path)
    state.owns_loss = False
    run(ProgressCallback(stream=stream), state=state, steps=100)
    assert stream.getvalue() == ""


def test_speed_is_the_mean_over_the_window(tmp_path: Path) -> None:
    state = make_state(tmp_path, peak_flops_per_s=4e11)
    meter = SpeedMeter(state)
    for _ in range(30):
        take_step(state)
        speed = meter.update(state)
    assert speed.tokens_per_s == pytest.approx(TOKENS_PER_STEP / STEP_S)
    assert speed.seconds_left == pytest.approx(70 * STEP_S)
    assert speed.mfu == pytest.approx(TOKENS_PER_STEP / STEP_S * 1e7 / 4e11)
    assert "MFU 20.5%" in describe_step(state, speed=speed)


def test_without_a_known_peak_there_is_no_mfu(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    meter = SpeedMeter(state)
    take_step(state)
    assert "MFU" not in describe_step(state, speed=meter.update(state))


def test_a_run_whose_every_step_overflows_says_so_and_guesses_no_end(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    meter = SpeedMeter(state)
    take_step(state, skipped=True)
    text = describe_step(state, speed=meter.update(state))
    assert "(skipped)" in text
    assert "left" not in text
