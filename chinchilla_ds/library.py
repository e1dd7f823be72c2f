"""The functions that `import chinchilla_ds` offers: plan, fit, prepare, train, and use trained models.

Paths may be strings or `pathlib.Path`. Nothing here ends the process, and only `train` prints, as the launcher does.
What the user can fix raises a `ChinchillaError`; any other exception is a bug in this package. Heavy imports are made
where they are used, so that planning needs no torch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chinchilla_ds.config import RunConfig

if TYPE_CHECKING:
    import torch

    from chinchilla_ds.budget.laws.fitting.analysis import FitRequest
    from chinchilla_ds.budget.laws.fitting.result import FitReport
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.data.preparing.recipe import Recipe
    from chinchilla_ds.evaluation.scores import Score
    from chinchilla_ds.exporting.write import Exported
    from chinchilla_ds.inference.decoder import InferenceDecoder
    from chinchilla_ds.inference.generate import Continuation, OnText
    from chinchilla_ds.inference.model import LoadedModel, TrainedModel
    from chinchilla_ds.run_plan import Precision, RunPlan

StrPath = str | Path
DEFAULT_NEW_TOKENS = 200


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
        config: The requirements; None is the default budget. If `data.paths` is a prepared corpus, the plan uses its
            vocabulary and its number of distinct tokens.
        gpu: A device such as `h100`, for which the fastest layout that fits is searched; sizes that the config's
            layout sets stay fixed. None uses the config's layout unchanged.
        gpus: Number of ranks in all.
        gpus_per_node: Devices joined by the fast link; None: as many as are usual for the device.
        gpu_hours: The budget as time on `gpu`, instead of the config's FLOPs.
        device: `cuda` or `cpu`, if `gpu` is None: decides the default precision and micro-batch size.
        ds_config: DeepSpeed JSON, a file or its content, whose ZeRO stage, layout and precision the plan adopts.

    Raises:
        DsConfigError: `ds_config` cannot be read, or contradicts the config.
        ConfigError: values are invalid, or contradict each other.
        LayoutError: no layout fits, or the requested one cannot be built.
        PlanError: there is no model for the budget.
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


def fit(
    runs: StrPath,
    *,
    request: "FitRequest | None" = None,
    out: StrPath | None = None,
    columns: Mapping[str, str] | None = None,
    unit: Literal["token", "byte", "perplexity"] = "token",
    bytes_per_token: float | None = None,
) -> "FitReport":
    """Fit a scaling law to a table of runs.

    Args:
        runs: CSV, TSV, JSON, JSONL or Parquet with the columns num_params (or N), num_tokens (or D), loss, [flops (or
            C)], [run], or names like these.
        request: What to fit, and how; None fits the surface of approach 3 with weak priors.
        out: File that receives the law, for `RunConfig(law=...)`; its N counts all parameters.
        columns: Columns with other names, such as `{"loss": "Loss", "num_params": "N_total"}`.
        unit: What losses are given in: `token` (nats), `perplexity`, or `byte`, which converts them to nats per byte.
        bytes_per_token: With bytes, the tokenizer for which the law is to hold, as one to plan with has to.

    Raises:
        ConfigError: there is no such unit or column, or what is asked has no answer in that unit.
        DataError: the table cannot be read or fitted, or `out` is given and no surface can be fitted.
        OutputError: `out` cannot be written.
    """
    from chinchilla_ds.budget.laws.fitting.analysis import FitRequest, analyse
    from chinchilla_ds.budget.laws.fitting.read import read_runs
    from chinchilla_ds.budget.laws.fitting.result import law_text
    from chinchilla_ds.budget.laws.lookup import ParamsConvention
    from chinchilla_ds.budget.laws.loss_unit import LossUnit
    from chinchilla_ds.errors import ConfigError, DataError
    from chinchilla_ds.files import write_text

    if unit not in (units := [known.value for known in LossUnit]):
        raise ConfigError(f"`unit` is {unit!r}; it must be one of {', '.join(units)}")
    request, source = request or FitRequest(), Path(runs)
    read = read_runs(
        source,
        min_rows=request.min_rows,
        columns=columns,
        unit=LossUnit(unit),
        bytes_per_token=bytes_per_token,
    )
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
    """Read, clean, deduplicate and tokenise text; the same text and settings always give the same bytes.

    Call it under `if __name__ == "__main__":`, since its worker processes import the main module.

    Args:
        text: Files, folders and patterns, of one source or by source name; or a `Recipe` with all settings.
        out: Folder to make, for `DataConfig(paths=(out,))`.
        num_workers: Number of processes; None: the cores available to this process.
        progress: Called with the name of a stage and the fraction of it that is done.

    Raises:
        DataError: the text is missing, unreadable, or too small; all problems are listed.
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
        run: A run's folder, whose newest intact checkpoint is loaded, or a checkpoint.
        precision: Type of weights and activations, `fp32`, `bf16` or `fp16`; None: fp32 on the CPU, that of training
            on a GPU.
        device: Where the weights go; None: the GPU if there is one, otherwise the CPU.

    Raises:
        CheckpointError: no checkpoint is intact, or it lacks the tokenizer that it was trained with.
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
    """Continue prompts as one batch; each continuation is the same as if its prompt were alone.

    Args:
        model: What `load` returned, or a run's folder.
        prompts: One or several texts.
        max_new_tokens: Largest number of tokens to draw; None: 200, or as many as the model's context has room for.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draw only from the k most likely tokens.
        top_p: Draw only from the smallest set of most likely tokens whose probabilities sum to p.
        seed: The same seed draws the same text.
        stop: A continuation ends before the first of these strings.
        on_text: Called with the number of a prompt and its text as it becomes certain.

    Raises:
        ConfigError: a prompt or `max_new_tokens` exceeds the context, or a setting is invalid.
        CheckpointError: as for `load`.
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
    """Return a model's score on text by source, and that of all sources together under "all".

    Args:
        model: What `load` returned, or a run's folder.
        text: Files, folders and patterns, or these by source name; or a prepared folder, for its held-out part. None:
            the run's own held-out text.
        window: Tokens read at a time; None: the model's context.
        stride: Tokens scored by each window after the first one of a document; None: half the window.

    Raises:
        ConfigError: the window or the stride is invalid.
        DataError: the text is missing or empty, or the run's held-out text no longer exists.
        CheckpointError: as for `load`.
    """
    from chinchilla_ds.runs.evaluate import evaluate_on_text

    trained = _opened(model)
    return evaluate_on_text(
        trained,
        load=functools.partial(_decoder, model, trained),
        paths=None if text is None else _by_source(text),
        window=window,
        stride=stride,
    ).scores


def export(
    run: StrPath, *, out: StrPath, precision: "Precision | str | None" = None, licence: str | None = None
) -> "Exported":
    """Write a checkpoint as a folder that `transformers` loads as LlamaForCausalLM.

    Args:
        run: A run's folder, or a checkpoint.
        out: Folder to make; nothing is overwritten.
        precision: Type of the weights, `fp32`, `bf16` or `fp16`; None: that of training.
        licence: Licence named in the model card, such as `apache-2.0`.

    Raises:
        OutputError: `out` is not empty, or cannot be written.
        CheckpointError: as for `load`.
        DataError: there is no tokenizer, or weights are non-finite.
        ConfigError: a weight is outside the range of `precision`.
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
    """Return the decoder of an open model."""
    from chinchilla_ds.inference.model import LoadedModel
    from chinchilla_ds.inference.ranks import ModelRanks

    return model.decoder if isinstance(model, LoadedModel) else trained.load(ranks=ModelRanks())


def _by_source(
    text: "StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]]",
) -> dict[str, tuple[str, ...]]:
    named = text if isinstance(text, Mapping) else {path: path for path in _texts(text)}
    return {name: _texts(paths) for name, paths in named.items()}


def _texts(paths: "StrPath | Sequence[StrPath]") -> tuple[str, ...]:
    return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))
