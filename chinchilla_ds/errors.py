"""The exceptions of chinchilla-ds.

    ChinchillaError            something the user can fix: one message, exit code 2, no traceback
    |-- ConfigError            the run's configuration, every problem of it collected
    |   `-- DsConfigError      the DeepSpeed JSON: unreadable, misspelt, or contradicting the plan
    |-- PlanError              no plan exists for this budget
    |-- LayoutError            the parallel layout cannot be built
    |-- DataError              the training text: missing, unreadable, or too small
    |-- CheckpointError        a checkpoint is missing, damaged, or of another model or text
    |-- OutputError            the output folder cannot be written
    |-- TrackingError          a run's record or a store of runs, such as MLflow, cannot be read or written
    |-- DivergedError          loss or gradients are non-finite, batch after batch
    |-- OutOfMemoryError       a rank needs more memory than there is
    `-- WorkerError            a worker process was killed from outside

Anything else that escapes is a bug in this package and keeps its traceback.

A problem names the field of the config, or the parameter, that it is about in backquotes, with the value that was
given or would do: `micro_batch_size=3`, `checkpoint.resume=none`; one of another function stands behind that function's
name: `prepare.tokenizer`. The command line shows its flags in their place (`cli/flags.py`). A field of a file, such as
a plan's `batch.micro_batch_size`, is named as the file has it, without backquotes.
"""

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

EXIT_CODE_USER_ERROR = 2
"""Exit code after a `ChinchillaError`, the same as argparse's for a bad flag."""
EXIT_CODE_STOPPED = 85
"""The run was asked to stop and has saved: the same command continues. HTCondor's convention for such jobs."""
EXIT_CODE_HUNG = 86
"""No step was finished within `guards.hang_timeout_s`."""


class ChinchillaError(Exception):
    """Something the user can fix; carries every problem that was found, one line each."""

    holds_table: ClassVar[bool] = False
    """Whether a problem is a multi-line text of our own, shown unchanged."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        texts = (problems,) if isinstance(problems, str) else tuple(problems)
        self.problems: tuple[str, ...] = texts if self.holds_table else tuple(map(_one_line, texts))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """Pickle by problems, so that an error raised on one rank can be raised on all."""
        return type(self), (self.problems,)


@contextmanager
def reworded(words: Callable[[str], str], /) -> Iterator[None]:
    """Reword the problems that are raised here for the interface that shows them, such as a command line."""
    try:
        yield
    except ChinchillaError as error:
        error.problems = tuple(map(words, error.problems))
        error.args = ("\n".join(error.problems),)
        raise


_LONGEST = 1000
"""Most characters of a problem: a quoted value of a broken file may have millions."""
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
"""Line breaks and terminal control characters."""


def _one_line(problem: str) -> str:
    """Return a problem as one line of bounded length, whatever the quoted values contain."""
    text = problem.translate(_CONTROL)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


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
    """A checkpoint is missing or damaged, or does not fit the plan, the tokenizer or the text of the run to resume."""


class OutputError(ChinchillaError):
    """The output folder cannot be written."""


class TrackingError(ChinchillaError):
    """A run's record cannot be read, or a store of runs cannot be reached, read or written."""


class DivergedError(ChinchillaError):
    """Loss or gradients are non-finite, batch after batch."""


class OutOfMemoryError(ChinchillaError):
    """A rank needs more memory than is available."""

    holds_table = True


class WorkerError(ChinchillaError):
    """A worker process was killed, perhaps by the system because memory ran out; what is done is kept."""


_MIN_PART = 3
"""Shorter texts are part of too many names."""
_MOST_GUESSES = 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name that `name` probably means, or the empty string.

    That is one of which `name` is a part, such as `vocab` of `vocab-size`, where there is one such name or two, or
    one that takes a few typing errors to become `name`. A guess that shares some letters only would mislead.
    """
    candidates = {_plain(other): other for other in known}
    meant = _plain(name)
    likely = difflib.get_close_matches(meant, candidates, n=5, cutoff=0.6)
    near = [guess for guess in likely if _num_typing_errors(meant, guess) <= 1 + min(len(meant), len(guess)) // 6][:1]
    if not near:
        near = [key for key in candidates if _is_part(meant, key) or (_is_part(key, meant) and meant.startswith(key))]
    near = near if len(meant) >= _MIN_PART and len(near) <= _MOST_GUESSES else []
    return f"; did you mean {' or '.join(repr(candidates[guess]) for guess in near)}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")


def _is_part(part: str, whole: str) -> bool:
    """Return whether the whole starts with the part, or contains it between dashes, dots and spaces."""
    if len(part) < _MIN_PART or part == whole:
        return False
    return whole.startswith(part) or whole.endswith(tuple(mark + part for mark in "-. "))


def _num_typing_errors(name: str, other: str) -> int:
    """Return the number of letters to add, drop, change or swap with a neighbour to turn one name into the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(name, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, name[i - 2]) == (other[j - 2], b):
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


_NOT_OUR_DOING = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ELOOP,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR,
}  # fmt: skip
"""Errors of the operating system about the machine's own state. A file that is missing or already exists is more likely
a bug in this package, unless the caller has handled it."""


def machine_problem(error: OSError) -> str | None:
    """Return one line for an error caused by the user's machine or paths; None for one that may be a bug."""
    if error.errno not in _NOT_OUR_DOING:
        return None
    return f"{error.filename}: {reason(error)}" if error.filename is not None else reason(error)


def reason(error: OSError) -> str:
    """Return the operating system's message; numpy's short writes carry a text and no error number."""
    return error.strerror or str(error)
