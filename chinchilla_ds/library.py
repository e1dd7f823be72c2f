"""What `import chinchilla_ds` offers: planning, text, training and trained models as functions.

Paths may be text or `pathlib.Path`. Nothing here prints but `train`, which shows what the launcher shows, and nothing
ends the process: what the user can fix is a `ChinchillaError`, any other exception a bug of ours. Heavy imports
stand where they are used, so that planning needs no torch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.config import RunConfig

if TYPE_CHECKING:
    import torch

    from chinchilla_ds.budget.laws.fitting.analysis import FitRequest
    from chinchilla_ds.budget.laws.fitting.result import FitReport
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.data.preparing.recipe import Recipe
    from chinchilla_ds.evaluation.scores import Document, Score
    from chinchilla_ds.exporting.write import Exported
    from chinchilla_ds.inference.decoder import InferenceDecoder
    from chinchilla_ds.inference.generate import Continuation, OnText
    from chinchilla_ds.inference.model import LoadedModel, TrainedModel
    from chinchilla_ds.run_plan import Precision, RunPlan

StrPath = str | Path
DEFAULT_NEW_TOKENS = 200
TOTAL = "all"
"""Key of the scores of all sources together."""


def plan(
    config: RunConfig | None = None,
    *,
    gpu: str | None = None,
    gpus: int = 1,
    gpus_per_node: int | None = None,
    gpu_hours: float | None = None,
    device: str = "cuda",
    ds_config: "StrPath | Mapping[str, Any] | None" = None,
) -> "RunPlan":
    """Return the compute-optimal run of a budget: model, tokens, batch, learning rate and parallel layout.

    Args:
        config: What is wanted; None is the default budget. Of a prepared corpus in `data.paths`, vocabulary and
            distinct tokens are planned with.
        gpu: A device such as `h100`: the fastest layout that fits it is searched, with what the config's layout sets
            held fixed. None takes the config's layout as it is.
        gpus: All ranks.
        gpus_per_node: Devices joined by the fast link; None by device.
        gpu_hours: The budget as time on `gpu`, in place of the config's FLOPs.
        device: `cuda` or `cpu`, where no `gpu` is named: decides the default precision and the micro-batch.
        ds_config: DeepSpeed JSON, a file or its content, whose ZeRO stage, layout and precision are planned with.

    Raises:
        DsConfigError: `ds_config` cannot be read, or contradicts the config.
        ConfigError: values that are invalid, or contradict each other.
        LayoutError: no layout fits, or the one that is asked for cannot be built.
        PlanError: no model for the budget.
    """
    from chinchilla_ds.budget.cluster_plan import plan_on_devices
    from chinchilla_ds.budget.deepspeed_json import resolve
    from chinchilla_ds.budget.planner import plan as plan_layout_given
    from chinchilla_ds.errors import ConfigError
    from chinchilla_ds.runs.command import checked_config, set_fields
    from chinchilla_ds.runs.corpus import with_prepared_corpus

    config = with_prepared_corpus(checked_config(config))
    if ds_config is not None:
        ds = resolve.load_ds_config(ds_config) if isinstance(ds_config, str | Path) else ds_config
        config = resolve.apply_to_config(config, ds, explicit=set_fields(config))
    if gpu is None and (gpus_per_node is not None or gpu_hours is not None):
        raise ConfigError("gpus_per_node and gpu_hours have no effect without gpu: name the device too, or drop them")
    if gpu is None:
        return plan_layout_given(config, world_size=gpus, device=device)
    if gpu_hours is not None and config.compute_budget_flops is not None:
        raise ConfigError("compute_budget_flops and gpu_hours are both budgets: give one of them")
    return plan_on_devices(
        config,
        gpu=gpu,
        world_size=gpus,
        devices_per_node=gpus_per_node,
        gpu_hours=gpu_hours,
        explicit=set_fields(config),
    ).plan


def fit(runs: StrPath, *, request: "FitRequest | None" = None, out: StrPath | None = None) -> "FitReport":
    """Fit a scaling law to a table of runs.

    Args:
        runs: CSV file with the columns num_params (or N), num_tokens (or D), loss, [flops (or C)], [run].
        request: What to fit, and how; None is the surface of approach 3 with weak priors.
        out: Receives the law, for `RunConfig(law=...)`; its N counts all parameters.

    Raises:
        DataError: no table, or one that nothing, or for `out` no surface, can be fitted to.
        OutputError: `out` cannot be written.
    """
    from chinchilla_ds.budget.laws.fitting.analysis import FitRequest, analyse
    from chinchilla_ds.budget.laws.fitting.read import read_runs
    from chinchilla_ds.budget.laws.fitting.result import law_text
    from chinchilla_ds.budget.laws.lookup import ParamsConvention
    from chinchilla_ds.errors import DataError
    from chinchilla_ds.files import write_text

    request, source = request or FitRequest(), Path(runs)
    read = read_runs(source, min_rows=request.min_rows)
    report = analyse(read.table, source=source.name, request=request)
    if out is not None:
        if report.law is None:
            raise DataError(f"{source}: a law needs the surface of approach 3, which these runs do not identify")
        text = law_text(report, name=Path(out).stem, params_convention=ParamsConvention.TOTAL)
        write_text(Path(out), text=text, named=None)
    return replace(report, warnings=(*read.notes, *report.warnings))


def prepare(
    text: "StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]] | Recipe",
    *,
    out: StrPath,
    num_workers: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> "PreparedData":
    """Read, clean, deduplicate and tokenise text; the same text and settings give the same bytes.

    Call it below `if __name__ == "__main__":`, for its worker processes import the main module.

    Args:
        text: Files, folders and patterns; those of several sources by name; or a `Recipe`, with every setting.
        out: Becomes the prepared folder, for `DataConfig(paths=(out,))`.
        num_workers: Processes; None is the cores of this process.
        progress: Told the name of a stage and its share done, 0 to 1.

    Raises:
        DataError: the text is missing, unreadable, or too small; every problem found is listed.
        OutputError: `out` cannot be written, or holds something else.
    """
    from chinchilla_ds.data.preparing.pipeline import prepare_recipe
    from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
    from chinchilla_ds.data.reading.sources import DEFAULT_NAME

    if not isinstance(text, Recipe):
        sources = text if isinstance(text, Mapping) else {DEFAULT_NAME: text}
        text = Recipe(sources=tuple(SourceRecipe(name=name, paths=_texts(paths)) for name, paths in sources.items()))
    return prepare_recipe(text, folder=Path(out), num_workers=num_workers, progress=progress)


def load(
    run: StrPath, *, precision: "Precision | str | None" = None, device: "torch.device | str | None" = None
) -> "LoadedModel":
    """Return a trained model, its weights in memory.

    Args:
        run: A run's folder, whose newest whole checkpoint is taken, or a checkpoint.
        precision: Of weights and activations: `fp32`, `bf16` or `fp16`; None is fp32 on the CPU, as trained on a GPU.
        device: None is the GPU where there is one, or the CPU.

    Raises:
        CheckpointError: there is none that is whole, or it holds no tokenizer or another one.
    """
    import torch

    from chinchilla_ds.inference.model import LoadedModel
    from chinchilla_ds.inference.ranks import ModelRanks
    from chinchilla_ds.run_plan import Precision

    trained = _opened(run)
    decoder = trained.load(
        ranks=ModelRanks(),
        precision=None if precision is None else Precision(precision),
        device=None if device is None else torch.device(device),
    )
    return LoadedModel(trained=trained, decoder=decoder)


def generate(
    model: "LoadedModel | StrPath",
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: "OnText | None" = None,
) -> "list[Continuation]":
    """Continue prompts; all are computed together, and each as if it were alone.

    Args:
        model: What `load` returned, or a run's folder.
        prompts: One or several texts.
        max_new_tokens: Tokens to draw at most; None is 200, within the model's context.
        temperature: 0 takes the most likely token.
        top_k: Draw from the k most likely tokens alone.
        top_p: Draw from the fewest most likely tokens that sum to p alone.
        seed: The same seed draws the same text.
        stop: A continuation ends before the first of these strings.
        on_text: Told the number of a prompt, and text as it becomes certain.

    Raises:
        ConfigError: a prompt or `max_new_tokens` goes beyond the context, or a setting cannot be.
        CheckpointError: as `load`.
    """
    from chinchilla_ds.inference.generate import generate as continue_prompts
    from chinchilla_ds.inference.model import new_tokens_within
    from chinchilla_ds.inference.sampling import Sampling
    from chinchilla_ds.inference.source import CachedDecoder

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    trained = _opened(model)
    tokens = [trained.encode_prompt(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
    most = new_tokens_within(
        trained.context_tokens, prompts=tokens, max_new_tokens=max_new_tokens, default=DEFAULT_NEW_TOKENS
    )
    return continue_prompts(
        CachedDecoder(_decoder(model, trained)),
        prompts=tokens,
        tokenizer=trained.tokenizer,
        max_new_tokens=most,
        sampling=sampling,
        stop=stop,
        on_text=on_text,
    )


def evaluate(
    model: "LoadedModel | StrPath",
    text: "StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]] | None" = None,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> "dict[str, Score]":
    """Return the losses of a model on text: by source, and of all together under "all".

    Args:
        model: What `load` returned, or a run's folder.
        text: Files, folders and patterns, or those of several sources by name; None is the run's own held-out part.
        window: Tokens read at once; None is the model's context.
        stride: Tokens that each window after a document's first scores; None is half the window.

    Raises:
        ConfigError: a window or stride that cannot be.
        DataError: the text is missing or empty, or the run's held-out part has gone.
        CheckpointError: as `load`.
    """
    from chinchilla_ds.errors import DataError
    from chinchilla_ds.evaluation import windows
    from chinchilla_ds.evaluation.scores import Score
    from chinchilla_ds.evaluation.scoring import score_documents

    trained = _opened(model)
    window = window or trained.context_tokens
    stride = stride or max(1, window // 2)
    windows.check(window=window, stride=stride, seq_length=trained.context_tokens)
    documents = _documents(trained, text)
    decoder = _decoder(model, trained)
    scores = score_documents(
        documents,
        token_losses=functools.partial(decoder.token_losses, vocab_size=trained.tokenizer.vocab_size),
        eod_id=trained.tokenizer.eod_id,
        before_id=trained.tokenizer.bos_id,
        window=window,
        stride=stride,
        device=decoder.device,
    )
    if not scores:
        raise DataError("there is no text to evaluate on: every file is empty")
    return {name: scores[name] for name in sorted(scores)} | {TOTAL: sum(scores.values(), start=Score())}


def export(
    run: StrPath, *, out: StrPath, precision: "Precision | str | None" = None, licence: str | None = None
) -> "Exported":
    """Write a checkpoint as a folder that `transformers` loads as LlamaForCausalLM.

    Args:
        run: A run's folder, or a checkpoint.
        out: Folder to make; nothing is overwritten.
        precision: Of the weights: `fp32`, `bf16` or `fp16`; None is that of training.
        licence: For the model card, such as `apache-2.0`.

    Raises:
        OutputError: `out` holds something, or cannot be written.
        CheckpointError: as `load`.
        DataError: no tokenizer, or weights that are not finite.
        ConfigError: a weight lies beyond the range of `precision`.
    """
    from chinchilla_ds.exporting.card import TrainingFacts
    from chinchilla_ds.exporting.write import export_checkpoint
    from chinchilla_ds.files import check_free
    from chinchilla_ds.run_plan import Precision
    from chinchilla_ds.runs.text import text_of_checkpoint

    check_free(Path(out))
    reader = _opened(run).reader
    facts = TrainingFacts.of_checkpoint(reader, text=text_of_checkpoint(reader), licence=licence)
    dtype = reader.plan.precision if precision is None else Precision(precision)
    return export_checkpoint(reader, out=Path(out), dtype=dtype, facts=facts)


# ---- trained models --------------------------------------------------------------------------------------------------


def _opened(model: "LoadedModel | StrPath") -> "TrainedModel":
    from chinchilla_ds.inference.model import LoadedModel, TrainedModel

    return model.trained if isinstance(model, LoadedModel) else TrainedModel.open(Path(model))


def _decoder(model: "LoadedModel | StrPath", trained: "TrainedModel") -> "InferenceDecoder":
    """Return the weights of a model that has been opened."""
    from chinchilla_ds.inference.model import LoadedModel
    from chinchilla_ds.inference.ranks import ModelRanks

    return model.decoder if isinstance(model, LoadedModel) else trained.load(ranks=ModelRanks())


def _documents(
    trained: "TrainedModel", text: "StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]] | None"
) -> "Iterator[Document]":
    from chinchilla_ds.config import DataConfig
    from chinchilla_ds.errors import DataError
    from chinchilla_ds.evaluation.documents import file_documents, find_files, held_out_documents
    from chinchilla_ds.runs.text import text_of_checkpoint

    if text is not None:
        named = text if isinstance(text, Mapping) else {path: path for path in _texts(text)}
        paths = {name: _texts(of_source) for name, of_source in named.items()}
        return file_documents(find_files(paths, text_field=DataConfig().text_field), tokenizer=trained.tokenizer)
    prepared = text_of_checkpoint(trained.reader)
    if prepared is None:
        raise DataError(
            f"{trained.run_folder} does not say where its held-out text is, or that has gone; name files to evaluate on"
        )
    return held_out_documents(prepared, tokenizer=trained.tokenizer)


def _texts(paths: "StrPath | Sequence[StrPath]") -> tuple[str, ...]:
    return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))
