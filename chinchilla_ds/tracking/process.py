"""A process of its own that follows what a run records, and brings another place, such as MLflow, to it.

A thread is not enough for a place written to in Python: while it imports (seconds) or writes (a millisecond for each
step's metrics in MLflow's SQLite store), it holds the interpreter lock, which the training thread needs between any two
kernels. The process reads the run's folder, never what training has in memory: what it could not write it writes later,
and after a crash `chinchilla-ds track` does the same. It also outlives a training process that was killed, and then
marks the run as failed.

Its standard input holds one line of settings, and one with the run's status when the run ends. Its standard output
holds messages for the user, one JSON text per line.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from chinchilla_ds.structured import parse_json
from chinchilla_ds.tracking.tracker import NullTracker, RunStatus

INTERVAL_S = 2.0
"""How long metrics gather before they are written."""
LONGEST_WAIT_S = 60.0
"""Between attempts while the place cannot be written to."""
_IMPORT_ROOT = Path(__file__).resolve().parents[2]

_logger = logging.getLogger(__name__)

Endings = queue.Queue[RunStatus | None]
"""How the run ended; None where its process was killed."""


class FollowingProcess(NullTracker):
    """Runs `python -m module`, which follows the run's folder, and tells it how the run ends."""

    def __init__(
        self,
        *,
        module: str,
        settings: Mapping[str, object],
        environment: Mapping[str, str],
        name: str,
        remedy: str,
        close_timeout_s: float = 60.0,
    ) -> None:
        """Start the process.

        Args:
            module: name of the module to run; it calls `serve`.
            settings: what it is to do; they travel by pipe, for they may hold a password.
            environment: variables for the process, where the user has not set them.
            name: how messages call the place.
            remedy: the command that does afterwards what the process could not.
            close_timeout_s: how long `close` waits.
        """
        self._module, self._settings, self._environment = module, dict(settings), dict(environment)
        self._name, self._remedy, self._close_timeout_s = name, remedy, close_timeout_s
        self._is_closed = False
        self._process = self._start()

    def close(self, status: RunStatus) -> None:
        """Have the rest written and the run ended; a process that was killed is started once more for that."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._process is None or self._process.poll() is not None:
            self._end(self._process)
            self._process = self._start()
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended by itself
            self._process.stdin.write(status.value + "\n")
        if not self._end(self._process):
            _logger.warning(
                "%s was not up to date within %g s of the run's end: %s brings it there",
                self._name,
                self._close_timeout_s,
                self._remedy,
            )
        elif self._process.returncode < 0:
            _logger.warning(
                "%s may lack what this run has logged, for its process was killed by signal %d: %s brings it there",
                self._name,
                -self._process.returncode,
                self._remedy,
            )

    def _end(self, process: "subprocess.Popen[str] | None") -> bool:
        """Close the pipes and wait; return False where the process had to be killed."""
        if process is None:
            return True
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(self._close_timeout_s)
            return True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        finally:
            self._listener.join()

    def _start(self) -> "subprocess.Popen[str] | None":
        search_path = os.pathsep.join(filter(None, [str(_IMPORT_ROOT), os.environ.get("PYTHONPATH")]))
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**self._environment, **os.environ, "PYTHONPATH": search_path},
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(self._settings) + "\n")
            process.stdin.flush()
        except OSError as error:
            _logger.warning("%s is not written to: its process cannot be started: %s", self._name, error.strerror)
            return None
        assert process.stdout is not None
        self._listener = threading.Thread(
            target=_pass_on, args=(process.stdout,), name=f"tracking-{self._name}", daemon=True
        )
        self._listener.start()
        return process


def _pass_on(messages: IO[str]) -> None:
    with messages:
        for line in messages:
            _logger.warning("%s", parse_json(line, where="a message of the tracking process"))


# ---- in the process --------------------------------------------------------------------------------------------------


def serve(follow_run: Callable[[Any, Endings, Callable[[str], None]], bool]) -> None:
    """Follow the run that standard input names until it has ended, and end the process.

    Signals to the training processes are not for us: we end when they have.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    messages, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as a message

    def say(text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the training process was killed; nobody listens
            print(json.dumps(text), file=messages, flush=True)

    settings = parse_json(sys.stdin.readline(), where="the settings of the tracking process")
    endings: Endings = queue.Queue()
    threading.Thread(target=_await_end, args=(endings,), daemon=True).start()
    is_up_to_date = follow_run(settings, endings, say)
    sys.stderr.flush()
    os._exit(0 if is_up_to_date else 1)  # taking MLflow's modules down would cost the user a second


def _await_end(endings: Endings) -> None:
    line = sys.stdin.readline().strip()
    endings.put(RunStatus(line) if line else None)


def follow(
    bring_up: Callable[[RunStatus | None], None],
    *,
    endings: Endings,
    say: Callable[[str], None],
    name: str,
    remedy: str,
    describe: Callable[[Exception], str] = str,
    interval_s: float = INTERVAL_S,
) -> bool:
    """Bring a place to what a run has recorded, again and again until the run has ended.

    Args:
        bring_up: Does it; RUNNING while the run goes on. What it raises is tried again.
        endings: Receives how the run ended.
        say: Tells the user.
        name: How messages call the place.
        remedy: The command that does it afterwards.
        describe: Words for what `bring_up` raises.
        interval_s: Seconds between two times.

    Returns:
        Whether the place holds everything.
    """
    status: RunStatus | None = RunStatus.RUNNING
    problem, wait_s = None, 0.0
    while True:
        try:
            status = endings.get(timeout=wait_s) if wait_s else endings.get_nowait()
        except queue.Empty:
            status = RunStatus.RUNNING
        before, problem = problem, None
        try:
            bring_up(status)
        except Exception as error:  # the border between a run and a place that we do not know
            problem = describe(error)
        if status is not RunStatus.RUNNING:
            if problem is not None:
                say(f"{name} lacks what this run has logged: {problem}; {remedy} brings it there")
            return problem is None
        if problem is not None and before is None:
            say(f"{name} cannot be written and is tried again, training goes on meanwhile: {problem}")
        if problem is None and before is not None:
            say(f"{name} is up to date again")
        wait_s = interval_s if problem is None else min(max(2 * wait_s, interval_s), LONGEST_WAIT_S)
