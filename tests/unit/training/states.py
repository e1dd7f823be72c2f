"""A small plan and a training state that can be advanced by hand."""

from pathlib import Path

from chinchilla_ds.run_plan import (
    BatchPlan,
    ModelShape,
    OptimizerPlan,
    ParallelLayout,
    Precision,
    Prediction,
    RunPlan,
    Schedule,
)
from chinchilla_ds.training.callback import EvaluationResult, StepResult, TrainingState

TOKENS_PER_STEP = 4096
FLOPS_PER_TOKEN = 1e7
STEP_S = 0.5


def make_plan(*, train_iters: int = 100) -> RunPlan:
    tokens, warmup_iters = train_iters * TOKENS_PER_STEP, min(10, train_iters)
    shape = ModelShape(
        num_layers=4,
        hidden_size=128,
        ffn_hidden_size=384,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=32,
        vocab_size=2000,
        padded_vocab_size=2048,
        seq_length=256,
    )
    return RunPlan(
        compute_budget_flops=tokens * FLOPS_PER_TOKEN,
        num_params=1_234_567,
        num_tokens=tokens,
        true_flops=tokens * FLOPS_PER_TOKEN,
        flops_per_token=FLOPS_PER_TOKEN,
        shape=shape,
        batch=BatchPlan(
            global_batch_size=16, micro_batch_size=4, gradient_accumulation_steps=4, train_iters=train_iters
        ),
        layout=ParallelLayout(),
        device="cpu",
        precision=Precision.FP32,
        optimizer=OptimizerPlan(learning_rate=1e-3),
        schedule=Schedule(warmup_iters=warmup_iters, decay_iters=train_iters - warmup_iters, min_learning_rate=1e-4),
        prediction=Prediction(
            law="hoffmann2022",
            loss_law="hoffmann2022",
            loss=7.125,
            optimal_num_params=1e6,
            optimal_num_tokens=1e6,
            optimal_loss=7.1,
        ),
        seed=1,
        eval_interval_iters=50,
        reasons=("because",),
    )


def make_state(run_folder: Path, *, train_iters: int = 100, peak_flops_per_s: float | None = None) -> TrainingState:
    plan = make_plan(train_iters=train_iters)
    return TrainingState(plan=plan, run_folder=run_folder, owns_loss=True, peak_flops_per_s=peak_flops_per_s)


def take_step(state: TrainingState, *, loss: float = 4.0, skipped: bool = False) -> None:
    """Advance the state as the loop does."""
    state.attempts += 1
    state.elapsed_s += STEP_S
    state.tokens_per_s = TOKENS_PER_STEP / STEP_S
    if not skipped:
        state.iteration += 1
    grad_norm = float("nan") if skipped else 1.5
    state.step = StepResult(loss=loss, grad_norm=grad_norm, learning_rate=1e-3, skipped=skipped, loss_scale=8.0)


def evaluate(state: TrainingState, *, loss: float, bits_per_byte: float) -> None:
    state.evaluation = EvaluationResult(loss=loss, bits_per_byte=bits_per_byte, num_tokens=1000)
