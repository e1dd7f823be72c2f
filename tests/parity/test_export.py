"""What transformers computes from an export is what the training engine computes, whatever its layout was."""

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM

from chinchilla_ds.budget.layout.rules import layout_problems, shape_problems
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.engine.checkpoint import Checkpointer, load, newest_whole
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.config_json import config_of
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.testing import tiny_plan
from tests.parity import harness
from tests.unit.exporting.conftest import english_tokenizer, small_shape

TOLERANCE = 1e-6
"""Of logits of size 1, in FP32."""
PREFIXES = (1, 2, 13, 32)
TEXT = torch.randint(0, 300, (32,), generator=torch.Generator().manual_seed(5)).tolist()
TOKEN_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}


@dataclass(frozen=True, kw_only=True)
class Case:
    zero: int
    tp: int = 1
    pp: int = 1
    groups: int = 2
    tied: bool = False
    qk_norm: bool = False

    def __str__(self) -> str:
        names = f"zero{self.zero}-tp{self.tp}-pp{self.pp}-groups{self.groups}"
        return names + ("-tied" if self.tied else "") + ("-qk_norm" if self.qk_norm else "")

    def plan(self):
        """Four ranks at most, and data parallelism where it fits, so that ZeRO has something to cut."""
        plan = tiny_plan(
            shape=small_shape(num_query_groups=self.groups, tied_embeddings=self.tied, qk_norm=self.qk_norm),
            train_iters=3,
            learning_rate=4e-3,
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            data_parallel_size=1 if self.tp * self.pp == 4 else 2,
            zero_stage=self.zero,
            gradient_accumulation_steps=2,
        )
        return dataclasses.replace(plan, optimizer=dataclasses.replace(plan.optimizer, epsilon=1e-3))


def train_and_save(engine, folder, tokenizer):
    """A body for `on_engine`: returns the logits before training and after it, of the token after each prefix."""
    before = logits_of(engine)
    for step in range(engine.plan.batch.train_iters):
        batches = harness.own_micro_batches(engine.plan, step)
        engine.train_step(batches, learning_rate=harness.learning_rate(engine.plan, step))
    state = CheckpointState(iteration=3, data_step=3, attempts=3, optimizer_step=-1, elapsed_s=0.0, world_size=-1)
    Checkpointer(engine, folder=folder / "checkpoints", ds_config={}, tokenizer=tokenizer).save(state)
    return before, logits_of(engine)


def logits_of(engine):
    return torch.stack([engine.next_token_logits(TEXT[:length]).cpu() for length in PREFIXES])


def check(case, tmp_path):
    english_tokenizer().save(tmp_path / "tokenizer.model")
    plan = case.plan()
    [(before, after), *_] = harness.on_engine(plan, train_and_save, tmp_path, tmp_path / "tokenizer.model")
    reader = CheckpointReader.open(tmp_path)
    facts = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
    export_checkpoint(reader, out=tmp_path / "out", dtype=Precision.FP32, facts=facts)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, Qwen3ForCausalLM if case.qk_norm else LlamaForCausalLM)
    pieces = english_tokenizer().vocab_size
    with torch.no_grad():
        found = model(torch.tensor([TEXT])).logits[0, [length - 1 for length in PREFIXES]]
    apart = (found - after[:, :pieces]).abs().max().item()
    assert apart <= TOLERANCE
    assert (found - before[:, :pieces]).abs().max() > 1e-2, "control: training changed the logits"
    import_folder(tmp_path / "out", out=tmp_path / "back")
    back = CheckpointReader.open(tmp_path / "back")
    assert back.names() == reader.names()
    assert all(torch.equal(back.read(name), reader.read(name)) for name in reader.names())
    return apart


QUICK = Case(zero=3, tp=2, pp=2)
QWEN3 = Case(zero=1, tp=2, qk_norm=True)
ALL = [
    Case(zero=zero, tp=tp, pp=pp, groups=groups, tied=tied)
    for zero, tp, pp, groups, tied in itertools.product((0, 1, 2, 3), (1, 2), (1, 2), (2, 4), (False, True))
]


def accepted(case):
    plan = case.plan()
    problems = [*shape_problems(shape=plan.shape, layout=plan.layout)]
    return not [*problems, *layout_problems(layout=plan.layout, precision=plan.precision)]


@pytest.mark.parametrize("case", [QUICK, QWEN3], ids=str)
def test_export_has_the_logits_of_the_engine(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if case != QUICK and accepted(case)], ids=str)
def test_export_has_the_logits_of_the_engine_in_every_combination(case, tmp_path):
    check(case, tmp_path)


def load_and_tell(engine, folder):
    """A body for `on_engine`: the logits before loading weights and after it."""
    before = logits_of(engine)
    load(engine, checkpoint=newest_whole(folder, warn=pytest.fail), weights_only=True)
    return before, logits_of(engine)


@pytest.mark.parametrize("case", [Case(zero=3), QWEN3, pytest.param(QUICK, marks=pytest.mark.slow)], ids=str)
def test_training_starts_from_a_model_of_transformers(case, tmp_path):
    plan = case.plan()
    shape, pieces = plan.shape, english_tokenizer().vocab_size
    config = config_of(shape, vocab_size=pieces, token_ids=TOKEN_IDS, dtype=Precision.FP32)
    source = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    with torch.no_grad():
        for name, value in source.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                value.add_(0.3 * torch.randn_like(value))
    source.save_pretrained(tmp_path / "source")
    english_tokenizer().save(tmp_path / "source" / "tokenizer.model")
    imported = import_folder(tmp_path / "source", out=tmp_path / "run")
    assert CheckpointReader.open(tmp_path / "run").state.tokenizer_sha256 == english_tokenizer().sha256
    padded = dataclasses.replace(imported.plan.shape, vocab_size=shape.vocab_size)
    assert padded == shape
    [(before, after), *_] = harness.on_engine(plan, load_and_tell, tmp_path / "run")
    with torch.no_grad():
        truth = source(torch.tensor([TEXT])).logits[0, [length - 1 for length in PREFIXES]]
    assert (after[:, :pieces] - truth).abs().max() <= TOLERANCE
    assert not after[:, pieces:].any(), "rows of padding are zero"
    assert (before[:, :pieces] - truth).abs().max() > 1e-2, "control: the weights came from the import"


def test_only_what_the_planner_refuses_is_left_out():
    left_out = {case for case in ALL if not accepted(case)}
    assert left_out == {case for case in ALL if case.pp == 2 and (case.zero == 0 or case.tied)}
