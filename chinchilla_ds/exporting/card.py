"""The model card: README.md of a Hugging Face folder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chinchilla_ds.budget.prediction import why_no_prediction
from chinchilla_ds.data.prepared import LEDGER_NAME, PreparedData
from chinchilla_ds.data.preparing.ledger import Ledger
from chinchilla_ds.errors import DataError
from chinchilla_ds.exporting.config_json import family_of
from chinchilla_ds.run_plan import ADAMW, Precision, RunPlan
from chinchilla_ds.structured import read_bytes
from chinchilla_ds.units import format_bytes, format_count, format_flops

if TYPE_CHECKING:
    from chinchilla_ds.checkpoint.reader import CheckpointReader


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Results and data of training; None if unknown."""

    licence: str | None = None
    """An SPDX identifier or one of Hugging Face's, such as `apache-2.0`."""
    consumed_tokens: int
    flops_spent: float
    held_out_loss: float | None = None
    """In nats per token."""
    held_out_bits_per_byte: float | None = None
    ledger: Ledger | None = None
    tokenizer_sha256: str | None = None

    @classmethod
    def of_checkpoint(
        cls, reader: "CheckpointReader", /, *, text: PreparedData | None = None, licence: str | None = None
    ) -> "TrainingFacts":
        """Return what a checkpoint records about its training, and the ledger of the text that it was trained on.

        Args:
            reader: The checkpoint.
            text: Its prepared text, whose ledger is read if it has one; None: unknown.
            licence: See `TrainingFacts.licence`.

        Raises:
            DataError: the ledger is damaged.
        """
        plan, state = reader.plan, reader.state
        ledger = None
        if text is not None and (file := text.folder / LEDGER_NAME).is_file():
            content = read_bytes(file, what="the ledger", error=DataError)
            ledger = Ledger.from_json(content.decode(errors="replace"))
        return cls(
            licence=licence,
            consumed_tokens=plan.consumed_tokens(iteration=state.iteration),
            flops_spent=plan.flops_spent(attempts=state.attempts),
            held_out_loss=state.held_out_loss,
            held_out_bits_per_byte=state.held_out_bits_per_byte,
            ledger=ledger,
            tokenizer_sha256=state.tokenizer_sha256,
        )


def model_card(
    plan: RunPlan, /, *, facts: TrainingFacts, num_params: int, dtype: Precision, bos: str | None = None
) -> str:
    """Return the card in Markdown, with the YAML header that the Hugging Face hub reads.

    Args:
        plan: The plan of training.
        facts: The results of training.
        num_params: Parameters of the export, without padding.
        dtype: Type of the weights.
        bos: The token that begins every document; None: no token does.
    """
    head = ["---", f"license: {facts.licence or 'unknown'}", "library_name: transformers"]
    head += ["pipeline_tag: text-generation", "tags:", "- chinchilla-ds", "---"]
    licence = "" if facts.licence else " No licence is given: ask the people who trained it before using it."
    return "\n".join(
        [
            *head,
            "",
            f"# {family_of(plan.shape).title} decoder of {format_count(num_params)} parameters",
            "",
            f"Trained by chinchilla-ds on {format_count(facts.consumed_tokens)} tokens, "
            f"{format_flops(facts.flops_spent)}.{licence}",
            "",
            *_table("Model", _shape_rows(plan, num_params=num_params, dtype=dtype)),
            *_table("Training", _training_rows(plan, facts)),
            *_data_lines(facts),
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            'model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")',
            'inputs = tokenizer("Once", return_tensors="pt", return_token_type_ids=False)',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
            "```",
            "",
            "It continues text and does not follow instructions. Documents were separated by the end-of-document "
            f"token, and {'no token' if bos is None else bos} begins one.",
            "",
        ]
    )


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _shape_rows(plan: RunPlan, *, num_params: int, dtype: Precision) -> list[tuple[str, str]]:
    shape = plan.shape
    return [
        ("Parameters", f"{num_params:,}"),
        ("Layers", str(shape.num_layers)),
        ("Hidden size", f"{shape.hidden_size}; SwiGLU {shape.ffn_hidden_size}"),
        ("Attention", f"{shape.num_attention_heads} heads of {shape.kv_channels}, {shape.num_query_groups} key/value"),
        ("Context", f"{shape.seq_length} tokens"),
        ("Embeddings", "tied" if shape.tied_embeddings else "untied"),
        ("Weights", dtype.value),
    ]


def _predicted(plan: RunPlan) -> str:
    if (why := why_no_prediction(plan)) is not None:
        return f"none: {why}"
    return f"{plan.prediction.loss:.4f} nats/token by {plan.prediction.loss_law} (its own tokenizer)"


def _training_rows(plan: RunPlan, facts: TrainingFacts) -> list[tuple[str, str]]:
    optimizer, peak = plan.optimizer, plan.optimizer.learning_rate
    name = "AdamW" if optimizer.plugin == ADAMW else str(optimizer.plugin)
    rows = [
        ("Compute budget", format_flops(plan.compute_budget_flops)),
        ("FLOPs spent", format_flops(facts.flops_spent)),
        ("Tokens", f"{facts.consumed_tokens:,} of {plan.num_tokens:,} planned"),
        ("Optimizer", f"{name}, peak learning rate {peak:.3g}, {plan.schedule.decay.value}"),
        ("Batch", f"{plan.batch.global_batch_size} sequences of {plan.shape.seq_length} tokens"),
        ("Precision", plan.precision.value),
        ("Predicted loss", _predicted(plan)),
    ]
    if facts.held_out_loss is not None:
        rows.append(("Held-out loss", f"{facts.held_out_loss:.4f} nats/token"))
    if facts.held_out_bits_per_byte is not None:
        rows.append(("Held-out bits per byte", f"{facts.held_out_bits_per_byte:.4f}"))
    if facts.tokenizer_sha256 is not None:
        rows.append(("Tokenizer", f"SHA-256 {facts.tokenizer_sha256}"))
    return rows


def _data_lines(facts: TrainingFacts) -> list[str]:
    """Return what became of the text that was read, source by source."""
    if facts.ledger is None:
        return ["## Data", "", "Not recorded with the checkpoint.", ""]
    lines = ["## Data", "", "| source | read | dropped | duplicates | held out | train | tokens |"]
    lines.append("|---|---|---|---|---|---|---|")
    for source in facts.ledger.sources:
        dropped = sum(amount.bytes for amount in source.dropped.values())
        duplicates = source.exact_duplicates.bytes + source.near_duplicates.bytes
        sizes = (source.read.bytes, dropped, duplicates, source.held_out.bytes, source.train.bytes)
        cells = " | ".join(format_bytes(size) for size in sizes)
        lines.append(f"| {source.name} | {cells} | {format_count(source.tokens)} |")
    return [*lines, ""]
