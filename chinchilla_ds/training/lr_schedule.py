"""Learning rate as a pure function of the optimizer steps actually taken.

Convention: `iteration` is the number of steps taken before this one, so the first step has iteration 0 and the last
one `train_iters - 1`. The three landmarks are exact:

- warm-up: the first step uses `peak / warmup_iters`, never zero; step `warmup_iters - 1` uses `peak`;
- decay: the last step before the decay phase uses `peak`, and it is decayed over the `decay_iters` steps after it;
- the last step, `train_iters - 1`, uses `min_learning_rate`.

A step skipped by an FP16 overflow changes nothing: the next attempt uses the same iteration again.
"""

import math

from chinchilla_ds.run_plan import Decay, Schedule


def learning_rate(iteration: int, *, schedule: Schedule, peak: float, train_iters: int) -> float:
    """Return the learning rate of one optimizer step.

    Args:
        iteration: optimizer steps taken before this one; skipped ones do not count.
        schedule: lengths, in optimizer steps, and shape of warm-up and decay.
        peak: learning rate at the end of warm-up.
        train_iters: optimizer steps of the whole run. Beyond them the last learning rate is kept.

    Raises:
        ValueError: a negative iteration, or phases that do not fill the run.

    Source: linear warm-up and half a cosine, Hoffmann et al. 2022 (arXiv:2203.15556), appendix B, where a cosine
    longer than the run increases the loss, so it ends with the run; warm-up, stable, decay: Hu et al. 2024
    (arXiv:2404.06395), section 4, with the linear decay of Haegele et al. 2024 (arXiv:2405.18392).
    """
    if iteration < 0:
        raise ValueError(f"iteration is {iteration}; it counts optimizer steps from 0")
    check_phases(schedule, train_iters=train_iters)
    if iteration < schedule.warmup_iters:
        return peak * (iteration + 1) / schedule.warmup_iters
    decayed_iters = iteration + 1 - (train_iters - schedule.decay_iters)
    if decayed_iters <= 0 or schedule.decay_iters == 0:
        return peak
    progress = min(decayed_iters / schedule.decay_iters, 1.0)
    return schedule.min_learning_rate + (peak - schedule.min_learning_rate) * _remaining(schedule.decay, progress)


def check_phases(schedule: Schedule, *, train_iters: int) -> None:
    """Raise ValueError if warm-up and decay do not fit `train_iters` steps as the schedule's shape requires."""
    for problem in schedule.contradictions(train_iters=train_iters):
        raise ValueError(problem)


def _remaining(decay: Decay, progress: float) -> float:
    """Return the share of (peak - minimum) that remains at `progress` (0 to 1) of the decay phase."""
    if decay is Decay.COSINE:
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress
