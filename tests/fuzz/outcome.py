"""What a fuzzed input may lead to: it is accepted, or refused in one line per problem. Anything else is a fault."""

import contextlib
import io
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from chinchilla_ds.cli.main import main
from chinchilla_ds.errors import ChinchillaError

LIMIT_S = 5.0
"""Of computing, for one input."""
WAITING_S = 60.0
"""For one input, waiting included: as long as a busy machine may take, and no FIFO ever answers."""
LIMIT_BYTES = 4 << 30
"""Of address space, for one input, on top of what the process has."""
SHOWN_CHARACTERS = 2000
"""The longest line that a person may be shown."""


class HangError(BaseException):
    """An input took too long. No Exception, so that nothing on its way takes it for a failure of its own."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise HangError in the main thread beyond LIMIT_S or WAITING_S, and MemoryError beyond LIMIT_BYTES."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError("it computes too long" if number == signal.SIGPROF else "it waits too long")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, WAITING_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def accepted(read: Callable[[], object]) -> bool:
    """Return whether an input was taken; False where it was refused as it should be."""
    problems: tuple[str, ...] | None = None
    with limited():
        try:
            read()
        except ChinchillaError as error:
            problems = error.problems
    if problems is not None:
        _check_lines(problems)
    return problems is None


def ends_well(words: Sequence[str]) -> bool:
    """Return whether a command accepted its input; it must return 0, or 2 with lines that each begin with `error:`."""
    output, errors = io.StringIO(), io.StringIO()
    with limited(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            exit_code: object = main(words)
        except SystemExit as left:  # argparse's --help
            exit_code = left.code or 0
    assert exit_code in (0, 2), f"exit code {exit_code}"
    output.getvalue().encode()  # what cannot be encoded cannot be printed
    if exit_code == 2:
        lines = errors.getvalue().splitlines()
        assert all(line.startswith("error: ") for line in lines), errors.getvalue()
        _check_lines(lines)
    return exit_code == 0


def _check_lines(lines: Sequence[str]) -> None:
    assert lines, "refused without a word"
    for line in lines:
        assert line.strip(), "an empty line"
        assert "\n" not in line, f"more than one line: {line!r}"
        assert len(line) <= SHOWN_CHARACTERS, f"{len(line)} characters: {line[:200]!r}"


def put(path: Path, content: bytes) -> Path:
    """Write a file whole, and return where."""
    path.write_bytes(content)
    return path
