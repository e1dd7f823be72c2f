"""What DeepSpeed is held to, and what that costs."""

import time

import pytest

from chinchilla_ds.distributed import deepspeed_patches
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
