"""Stock DeepSpeed reads what `checkpoint convert --to universal` writes, and goes on as torch's own AdamW would."""

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import nn

from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.universal import write_universal
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.testing import run_on_ranks, tiny_plan

STEPS_BEFORE, STEPS_AFTER = 3, 2
RANKS = 2
ROWS = 4 * RANKS
PLAN = tiny_plan(learning_rate=1e-2)


class Other(nn.Module):
    """A model of another program: it knows nothing of ours but the names of two weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layer = nn.ModuleDict({"linear_fc1": nn.Linear(6, 10, bias=False), "linear_fc2": nn.Linear(10, 5, bias=False)})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": layer})])})
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)

    def forward(self, inputs):
        mlp = self.decoder["layers"][0]["mlp"]
        return mlp["linear_fc2"](torch.tanh(mlp["linear_fc1"](inputs))).square().mean()


def batch(step, rows=slice(None)):
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(step))[rows]


def optimizer_of(model):
    chosen = PLAN.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=chosen.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.epsilon,
        weight_decay=chosen.weight_decay,
    )


def take_steps(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(batch(step)).backward()
        optimizer.step()


def convert_after_steps(tmp_path):
    """Train with torch alone, write one of our checkpoints, convert it; return what torch makes of it afterwards."""
    model = Other()
    optimizer = optimizer_of(model)
    take_steps(model, optimizer, range(STEPS_BEFORE))
    tensors = []
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors += [(name, parameter), *((f"{kind}/{name}", state[kind]) for kind in ("exp_avg", "exp_avg_sq"))]
    state = CheckpointState(
        iteration=STEPS_BEFORE,
        data_step=STEPS_BEFORE,
        attempts=STEPS_BEFORE,
        optimizer_step=STEPS_BEFORE,
        elapsed_s=0.0,
        versions={"deepspeed": deepspeed.__version__},
    )
    checkpoint = tmp_path / checkpoint_name(STEPS_BEFORE)
    write_checkpoint(checkpoint, plan=PLAN, ds_config={}, weights=tensors, state=state)
    out = tmp_path / "universal"
    out.mkdir()
    write_universal(CheckpointReader(checkpoint), out=out)
    take_steps(model, optimizer, range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER))
    return out, {name: parameter.detach() for name, parameter in model.named_parameters()}


def go_on_in_deepspeed(folder, stage, *, load=True):
    """A rank of a program that knows DeepSpeed alone."""
    cpu_backend.install()  # or DeepSpeed compiles an all-reduce of its own, for most of a minute
    deepspeed.init_distributed(dist_backend="gloo")
    model = Other()
    config = {
        "train_micro_batch_size_per_gpu": ROWS // RANKS,
        "zero_optimization": {"stage": stage},
        "checkpoint": {"load_universal": True},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=config)
    if load:
        engine.load_checkpoint(str(folder), load_lr_scheduler_states=False)
        assert engine.global_steps == STEPS_BEFORE
    rank = dist.get_rank()
    for step in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER):
        engine.backward(engine(batch(step, slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS))))
        engine.step()
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights[name] = parameter.detach().clone()
    return weights


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_goes_on_as_torch_would(stage, tmp_path):
    folder, wanted = convert_after_steps(tmp_path)
    for weights in run_on_ranks(go_on_in_deepspeed, RANKS, folder, stage):
        assert weights.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
    if stage == 1:
        fresh, _ = run_on_ranks(go_on_in_deepspeed, RANKS, folder, stage, load=False)
        assert all((fresh[name] - value).abs().max() > 1e-3 for name, value in wanted.items()), "control"


def test_the_moments_and_the_count_matter(tmp_path):
    """Control: torch's AdamW with the weights alone goes elsewhere."""
    folder, wanted = convert_after_steps(tmp_path)
    model = Other()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.load(folder / checkpoint_name(STEPS_BEFORE) / "zero" / name / "fp32.pt")["param"])
    take_steps(model, optimizer_of(model), range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER))
    assert any((dict(model.named_parameters())[name] - value).abs().max() > 1e-3 for name, value in wanted.items())


def test_weights_are_cut_where_tensor_parallelism_cuts_them(tmp_path):
    folder, _ = convert_after_steps(tmp_path)
    mlp = str(folder / checkpoint_name(STEPS_BEFORE) / "zero" / "decoder.layers.0.mlp")
    assert torch.load(f"{mlp}.linear_fc1.weight/exp_avg.pt")["cat_dim"] == 0
    assert torch.load(f"{mlp}.linear_fc2.weight/exp_avg.pt")["cat_dim"] == 1
