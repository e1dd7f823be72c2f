"""A fit of curves as `chinchilla-ds fit-curves` makes it: which runs are fitted, which anchor, what is predicted."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.curves.band import CurveLaws, fit_laws
from chinchilla_ds.budget.laws.curves.equations import MULTI_POWER
from chinchilla_ds.budget.laws.curves.fit import huber_sum, named_constants
from chinchilla_ds.budget.laws.curves.law import CurveRun
from chinchilla_ds.budget.laws.curves.read import CurveFile, Table, curve_lines, read_curves
from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.errors import DataError
from chinchilla_ds.units import format_count

ANCHOR_SHARE, ANCHOR_SHARE_OF_ONE = 0.15, 0.35
"""A size whose files cover less than the first share of the steps that another size's cover, or whose only file covers
less than the second, has only the beginning of a run: it sets the level of its size, and other sizes the shape."""
SMALLEST_ALPHA = 0.05
"""Least alpha of losses that fall: public curves have .45 to .52, and .009 is the edge of what the fit allows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedCurve:
    """The prediction of one file."""

    file: CurveFile
    loss: Floats
    """Nats per token, [point]."""
    half_width: Floats
    """Half-width of the 80 % band, in log loss, [point]."""
    half_width_without_disagreement: Floats
    """The same without the disagreement of the two laws, [point]."""

    @property
    def errors(self) -> Floats:
        """|predicted - measured| / measured at each point, [point]."""
        return np.asarray(np.abs(self.loss / self.file.curve.loss - 1))

    def coverage(self, *, with_disagreement: bool = True) -> float:
        """Return the share of the points within the band."""
        wide = self.half_width if with_disagreement else self.half_width_without_disagreement
        return float(np.mean(np.abs(np.log(self.loss / self.file.curve.loss)) <= wide))


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveReport:
    """A fit of curves, and its predictions."""

    laws: CurveLaws
    fitted: tuple[CurveFile, ...]
    anchors: tuple[CurveFile, ...]
    objective: float
    """Summed Huber loss (delta 1e-3) of the log residuals of the fitted runs, without the prior."""
    predicted: tuple[PredictedCurve, ...]
    notes: tuple[str, ...]

    @property
    def measured(self) -> tuple[PredictedCurve, ...]:
        """The predictions of files that have losses to compare with."""
        return tuple(prediction for prediction in self.predicted if prediction.file.has_loss)

    def mean_coverage(self, *, with_disagreement: bool = True) -> float | None:
        """Return the coverage of the band, averaged over files; None: no file to predict has losses."""
        shares = [prediction.coverage(with_disagreement=with_disagreement) for prediction in self.measured]
        return float(np.mean(shares)) if shares else None


def analyse_curves(
    train: Sequence[str], *, predict: Sequence[str], warmup_steps: int | None, table: Table = curve_lines
) -> CurveReport:
    """Fit the laws to runs, and predict others.

    Args:
        train: Files to fit, each `FILE` or `FILE@N` with its number of parameters.
        predict: Files to predict, named alike; a column `loss` is compared with the prediction.
        warmup_steps: Over these the rate rises from 0 to the first row's; None: up to the first row.
        table: Reads a file.

    Raises:
        DataError: a file that cannot be used; the problems of all files.
    """
    files, problems = read_curves(train, warmup_steps=warmup_steps, needs_loss=True, table=table)
    wanted, more = read_curves(predict, warmup_steps=warmup_steps, needs_loss=False, table=table)
    if problems := [*problems, *more]:
        raise DataError(problems)
    anchors = [file for file in files if file.num_params in _anchored_sizes(files)]
    fitted = [file for file in files if file not in anchors]
    problems = [*_size_problems(files, wanted, fitted=fitted), *_count_problems(fitted), *_duplicates(files)]
    if problems:
        raise DataError(problems)
    runs = [_run(file) for file in fitted]
    laws = fit_laws([*runs, *(_run(file, is_anchor=True) for file in anchors)])
    return CurveReport(
        laws=laws,
        fitted=tuple(fitted),
        anchors=tuple(anchors),
        objective=sum(huber_sum(laws.laws[0].log_errors(run)) for run in runs),
        predicted=tuple(_predicted(laws, file) for file in wanted),
        notes=tuple(_notes(laws, files=files, anchors=anchors, wanted=wanted)),
    )


def _run(file: CurveFile, *, is_anchor: bool = False) -> CurveRun:
    return CurveRun(curve=file.curve, num_params=file.num_params, is_anchor=is_anchor)


def _predicted(laws: CurveLaws, file: CurveFile) -> PredictedCurve:
    run = _run(file)
    return PredictedCurve(
        file=file,
        loss=laws.predict(run),
        half_width=laws.half_width(run),
        half_width_without_disagreement=laws.half_width(run, with_disagreement=False),
    )


def _anchored_sizes(files: Sequence[CurveFile]) -> set[float | None]:
    """Return the sizes of which only the beginning of a run is there."""
    covered: dict[float | None, list[int]] = {}
    for file in files:
        covered.setdefault(file.num_params, []).append(int(file.curve.step[-1] - file.curve.step[0]))
    most = max(sum(steps) for steps in covered.values())
    return {
        size
        for size, steps in covered.items()
        if sum(steps) < most * (ANCHOR_SHARE_OF_ONE if len(steps) == 1 else ANCHOR_SHARE)
    }


def _size_problems(
    files: Sequence[CurveFile], wanted: Sequence[CurveFile], *, fitted: Sequence[CurveFile]
) -> list[str]:
    """Return the problems of sizes: some files have one and others none, or one that nothing is known of."""
    without = [file.name for file in files if file.num_params is None]
    if without and len(without) < len(files):
        return [f"{name}: its size is missing, and other files have one: give {name}@N" for name in without]
    sizes, known = {file.num_params for file in fitted}, {file.num_params for file in files}
    problems = []
    for file in wanted:
        if file.num_params is None and len(known) > 1:
            problems.append(f"{file.name}: which size is to be predicted? Give {file.name}@N")
        elif file.num_params is not None and without:
            problems.append(f"{file.name}: has a size, and the runs to fit have none: give theirs too, as FILE@N")
        elif file.num_params is not None and file.num_params not in known and len(sizes) == 1:
            problems.append(
                f"{file.name}: nothing is known of {format_count(file.num_params)} parameters from runs of one size; "
                "add runs of another size, or the beginning of a run of this one"
            )
    return problems


def _count_problems(fitted: Sequence[CurveFile]) -> list[str]:
    """Return the sizes that have fewer points than the law has constants."""
    needed = len(MULTI_POWER.constants)
    counts: dict[float | None, int] = {}
    for file in fitted:
        counts[file.num_params] = counts.get(file.num_params, 0) + len(file.curve)
    return [
        f"{'the runs to fit' if size is None else f'runs of {format_count(size)} parameters'} have {count} points "
        f"after the warm-up, and the law has {needed} constants: log more often, or longer"
        for size, count in counts.items()
        if count < needed
    ]


def _duplicates(files: Sequence[CurveFile]) -> list[str]:
    """Return the runs that are there twice: one left out would be predicted by its copy."""
    return [
        f"{first.path} and {second.path} are the same run (their losses are equal); keep one"
        for first, second in itertools.combinations(files, 2)
        if np.array_equal(first.curve.loss, second.curve.loss)
    ]


def _notes(
    laws: CurveLaws, *, files: Sequence[CurveFile], anchors: Sequence[CurveFile], wanted: Sequence[CurveFile]
) -> list[str]:
    notes = [
        f"{file.name}: {file.num_warmup_rows} rows of the warm-up are left out"
        for file in [*files, *wanted]
        if file.num_warmup_rows
    ]
    notes += [
        f"{file.name}: steps {file.curve.step[0]:,} to {file.curve.step[-1]:,} set the level of "
        f"{format_count(file.num_params or 0)} parameters; the shape comes from other sizes"
        for file in anchors
    ]
    known = {*laws.sizes, *(file.num_params for file in anchors)}
    for size in sorted({file.num_params or 0.0 for file in wanted} - known - {0.0}):
        notes.append(
            f"{format_count(size)} parameters were not fitted: the level is uncertain, and the band wide; the "
            "beginning of a run of this size would set it"
        )
    drops = {bool((file.curve.drops.size > 0).any()) for file in files if file not in anchors}
    if drops == {False}:
        notes.append("the learning rate of no run to fit falls: what a decay gains is not known from them")
    law = laws.laws[0]
    for size in laws.sizes or (None,):
        if (alpha := named_constants(law.form, law.theta(size))["alpha"]) < SMALLEST_ALPHA:
            of_size = "" if size is None else f" of {format_count(size)} parameters"
            notes.append(
                f"alpha{of_size} is {alpha:.2g}, below {SMALLEST_ALPHA:g}: these losses do not fall as training "
                "proceeds, the law does not hold for them, and its predictions say nothing"
            )
    return notes
