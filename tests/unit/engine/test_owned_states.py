"""DeepSpeed's CPU kernel goes on from a saved count as if it had never stopped, bit by bit."""

import pytest
import torch

from chinchilla_ds.engine.owned_states import catch_up

STEPS, SAVED_AT = 40, 24
SIZE = 1000


def gradient(step):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(step))


def take_steps(parameter, optimizer, steps):
    for step in steps:
        parameter.grad = gradient(step)
        optimizer.step()


def new():
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    parameter = torch.nn.Parameter(gradient(1000))
    return parameter, DeepSpeedCPUAdam([parameter], lr=1e-2, betas=(0.9, 0.95), adamw_mode=True)


@pytest.mark.parametrize(
    "already", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.slow)]
)
def test_the_cpu_kernel_catches_up(already):
    """`already`: steps that the new kernel has taken, at its start or before a rewind."""
    parameter, optimizer = new()
    take_steps(parameter, optimizer, range(SAVED_AT))
    saved = parameter.detach().clone(), dict(optimizer.state[parameter])
    saved[1].update({name: saved[1][name].clone() for name in ("exp_avg", "exp_avg_sq")})
    take_steps(parameter, optimizer, range(SAVED_AT, STEPS))

    def go_on(*, caught_up):
        other, fresh = new()
        take_steps(other, fresh, range(already))
        with torch.no_grad():
            other.copy_(saved[0])
        fresh.state[other] = {name: value.clone() if name != "step" else value for name, value in saved[1].items()}
        if caught_up:
            catch_up(fresh, step=SAVED_AT)
        take_steps(other, fresh, range(SAVED_AT, STEPS))
        return other

    assert torch.equal(go_on(caught_up=True), parameter)
    assert not torch.equal(go_on(caught_up=False), parameter), "control"


def test_other_optimizers_need_nothing():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    catch_up(optimizer, step=5)
    assert not optimizer.state
