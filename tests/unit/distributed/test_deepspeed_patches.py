"""What DeepSpeed is held to, and what that costs."""

import time

import pytest

from chinchilla_ds.distributed import deepspeed_patches, zero_step
from chinchilla_ds.distributed.dependency_check import DependencyChangedError


def test_the_optimizers_skip_what_is_no_number():
    deepspeed_patches.require_skips()
    started_s = time.process_time()
    deepspeed_patches.require_skips()
    assert time.process_time() - started_s < 0.2, "every rank pays for it"


def test_an_optimizer_that_no_longer_skips_is_named(monkeypatch):
    changed = ((deepspeed_patches.BF16_Optimizer, "if is_invalid(norm):"),)
    monkeypatch.setattr(deepspeed_patches, "_SKIPS", changed)
    with pytest.raises(DependencyChangedError, match=r"deepspeed's BF16_Optimizer has changed: 'if is_invalid\(norm"):
        deepspeed_patches.require_skips()


def test_the_corrections_of_the_step_fit_the_installed_version():
    for optimizer in zero_step._EXPECTED:
        zero_step._require(optimizer)


@pytest.mark.parametrize("optimizer", zero_step._EXPECTED, ids=lambda optimizer: optimizer.__name__)
def test_a_step_that_has_changed_is_named(optimizer, monkeypatch):
    step = optimizer.step
    monkeypatch.setattr(zero_step, "_corrected", set())
    monkeypatch.setattr(zero_step, "_EXPECTED", {optimizer: ("self._update_scale_after_the_step()",)})
    with pytest.raises(DependencyChangedError, match=f"deepspeed's {optimizer.__name__} has changed"):
        zero_step.install()
    monkeypatch.setattr(zero_step, "_EXPECTED", {optimizer: ()})
    monkeypatch.setattr(zero_step, "_NUM_SUMS", ("self._model_parallel_all_reduce(", 5))
    with pytest.raises(DependencyChangedError, match="4 times and not 5"):
        zero_step.install()
    assert optimizer.step is step, "nothing is half corrected"
