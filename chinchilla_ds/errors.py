"""The exceptions of chinchilla-ds.

    ChinchillaError            something the user can put right: one message, exit code 2, no traceback
    |-- ConfigError            the run's configuration, every problem of it collected
    |   `-- DsConfigError      the DeepSpeed JSON: unreadable, misspelt, or at odds with the plan
    |-- PlanError              no plan exists for this budget
    |-- LayoutError            the parallel layout cannot be built
    |-- DataError              the training text: missing, unreadable, or too small
    |-- CheckpointError        a checkpoint is missing, damaged, or of another model or text
    |-- OutputError            the output folder cannot be written
    |-- TrackingError          a run's record or the place that keeps runs, such as MLflow, cannot be read or written
    |-- DivergedError          loss or gradients are no numbers, batch after batch
    `-- OutOfMemoryError       a rank needs more memory than there is

Anything else that escapes is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence

EXIT_CODE_USER_ERROR = 2
"""What the process returns when a `ChinchillaError` ends it, as argparse does for a bad flag."""
EXIT_CODE_STOPPED = 85
"""The run was asked to stop and has saved: the same command continues. HTCondor's convention for such jobs."""
EXIT_CODE_HUNG = 86
"""No step was finished within --hang-timeout."""


class ChinchillaError(Exception):
    """Something the user can put right; carries every problem that was found."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """Pickle by problems, so that an error raised on one rank can be raised on all."""
        return type(self), (self.problems,)


class ConfigError(ChinchillaError):
    """The run's configuration breaks at least one rule."""


class DsConfigError(ConfigError):
    """The DeepSpeed JSON is unreadable, has unknown keys, or contradicts the plan."""


class PlanError(ChinchillaError):
    """No plan exists for this budget."""


class LayoutError(ChinchillaError):
    """The parallel layout cannot be built on these ranks, or DeepSpeed cannot combine its parts."""


class DataError(ChinchillaError):
    """The training text is missing, unreadable, or smaller than the plan needs."""


class CheckpointError(ChinchillaError):
    """A checkpoint is missing or damaged, or does not fit the plan, the tokenizer or the text to go on with."""


class OutputError(ChinchillaError):
    """The output folder cannot be written."""


class TrackingError(ChinchillaError):
    """A run's record cannot be read, or the place that keeps runs cannot be reached, read or written."""


class DivergedError(ChinchillaError):
    """Loss or gradients are no numbers, batch after batch."""


class OutOfMemoryError(ChinchillaError):
    """A rank needs more memory than there is."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name nearest to `name`, or the empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def reason(error: OSError) -> str:
    """Return what the operating system says; numpy's short writes carry a text and no error number."""
    return error.strerror or str(error)
