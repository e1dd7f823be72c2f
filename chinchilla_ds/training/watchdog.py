"""A watchdog per rank: if a step takes far too long, it reports, writes the stacks of all threads, and exits.

A collective waits permanently for a rank that is stuck, stopped or dead on another machine. Every rank watches itself,
so every rank's stacks are written, and the one that differs from the others is the cause.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from chinchilla_ds.errors import EXIT_CODE_HUNG

SLOWER = 5.0
"""A step may always take this multiple of the slowest one before it."""
FIRST_STEP = 3.0
"""The first step, which builds kernels and connections, may take this multiple of the limit."""
OTHERS_DUMP_S = 5.0
"""Pause between stacks and exit, for the other ranks to write theirs: the launcher ends all after the first exit."""
_FILE_S = 5.0
"""Time limit for the file of stacks: its disk may be the cause of the hang."""
_POLL_S = 1.0
_PACKAGE = Path(__file__).resolve().parents[1]


class Watchdog:
    """Watches what runs within `phase`; a context manager whose thread does the watching."""

    def __init__(
        self, *, timeout_s: float, run_folder: Path, rank: int, leave: Callable[[int], object] = os._exit
    ) -> None:
        """Set the limit.

        Args:
            timeout_s: Limit of one step in seconds, unless steps are slow anyway.
            run_folder: Receives `stacks-rank{rank}.txt`.
            rank: Global rank.
            leave: Ends the process with an exit code.
        """
        self._timeout_s, self._rank, self._leave = timeout_s, rank, leave
        self._file = run_folder / f"stacks-rank{rank}.txt"
        self._slowest_step_s: float | None = None
        self._watched: tuple[str, float, float] | None = None
        """Name, start and deadline of the phase; one tuple, so that the thread reads all of one phase."""
        self._over = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Watch one optimizer step, whose time sets later limits."""
        first = self._slowest_step_s is None
        with self.phase(f"step {number}", scale=FIRST_STEP if first else 1.0):
            started_s = time.monotonic()
            yield
        seconds = time.monotonic() - started_s
        if not first:  # the first one is not representative
            self._slowest_step_s = max(self._slowest_step_s or 0.0, seconds)
        self._slowest_step_s = self._slowest_step_s or 0.0

    @contextmanager
    def phase(self, name: str, *, scale: float = 1.0) -> Iterator[None]:
        """Watch something that may take `scale` times as long as a step."""
        limit_s = scale * max(self._timeout_s, SLOWER * (self._slowest_step_s or 0.0))
        now_s = time.monotonic()
        self._watched = (name, now_s, now_s + limit_s)
        try:
            yield
        finally:
            self._watched = None

    def _watch(self) -> None:
        poll_s = min(_POLL_S, self._timeout_s / 4)
        lost_s, last_s = 0.0, time.monotonic()
        watched = None
        while not self._over.wait(poll_s):
            now_s = time.monotonic()
            if watched is not self._watched:
                watched, lost_s = self._watched, 0.0
            elif now_s - last_s > poll_s + _POLL_S:
                lost_s += now_s - last_s  # the whole process was suspended: SIGSTOP, a suspended job
            last_s = now_s
            if watched is not None and now_s - lost_s > watched[2]:
                self._end(watched[0], seconds=now_s - watched[1])
                return

    def _end(self, name: str, *, seconds: float) -> None:
        """Report what hangs where, write the stacks, and exit."""
        where = place_of(sys._current_frames().get(self._main or 0))
        _say(
            f"error: rank {self._rank}: {name} was not finished after {seconds:.0f} s; it is {where}. A rank is "
            f"stuck, stopped or dead: compare the stacks of all ranks ({self._file})"
        )
        with suppress(OSError):
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        writer = threading.Thread(target=self._write_stacks, daemon=True)
        writer.start()
        writer.join(_FILE_S)
        time.sleep(OTHERS_DUMP_S)
        self._leave(EXIT_CODE_HUNG)

    def _write_stacks(self) -> None:
        with suppress(OSError), self._file.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)


def place_of(frame: FrameType | None) -> str:
    """Return where a thread is: the innermost frame, and the innermost one of this package."""
    if frame is None:
        return "at an unknown place"
    own: FrameType | None = frame
    while own is not None and _PACKAGE not in Path(own.f_code.co_filename).parents:
        own = own.f_back
    return f"in {_name(frame)}" if own in (None, frame) else f"in {_name(own)}, in a call of {_name(frame)}"


def _name(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} ({frame.f_code.co_name})"


def _say(line: str) -> None:
    with suppress(OSError):  # the reader is gone
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
