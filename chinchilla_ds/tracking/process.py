"""A separate process that follows a run's record and synchronises another store, such as MLflow, with it.

A thread is not enough for a store accessed from Python: while it imports (seconds) or writes (a millisecond for each
step's metrics in MLflow's SQLite store), it holds the interpreter lock, which the training thread needs between any two
kernels. The process reads the run's folder, never what training has in memory: what it could not write it writes later,
and after a crash `chinchilla-ds track` does the same. It also survives a training process that was killed, and then
marks the run as failed.

Its standard input carries one line of settings, and one with the run's status when the run ends. Its standard output
carries messages for the user, one JSON string per line.
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
"""How long metrics accumulate before they are written."""
LONGEST_WAIT_S = 60.0
"""Pause between attempts while the store cannot be written."""
_IMPORT_ROOT = Path(__file__).resolve().parents[2]

_logger = logging.getLogger(__name__)

Endings = queue.Queue[RunStatus | None]
"""How the run ended; None if its process was killed."""


class FollowingProcess(NullTracker):
    """Runs `python -m module`, which follows the run's folder, and sends it the run's final status."""

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
            settings: its settings; sent by pipe, since they may contain a password.
            environment: variables for the process, unless the user has set them.
            name: the store's name in messages.
            remedy: the command that later does what the process could not.
            close_timeout_s: how long `close` waits.
        """
        self._module, self._settings, self._environment = module, dict(settings), dict(environment)
        self._name, self._remedy, self._close_timeout_s = name, remedy, close_timeout_s
        self._is_closed = False
        self._process = self._start()

    def close(self, status: RunStatus) -> None:
        """Have the rest written and the run ended; a process that was killed is restarted once for that."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._process is None or self._process.poll() is not None:
            self._end(self._process)
            self._process = self._start()
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has already exited
            self._process.stdin.write(status.value + "\n")
        if not self._end(self._process):
            _logger.warning(
                "%s was not up to date within %g s of the run's end: %s brings it up to date",
                self._name,
                self._close_timeout_s,
                self._remedy,
            )
        elif self._process.returncode < 0:
            _logger.warning(
                "%s may lack data of this run, since its process was killed by signal %d: %s brings it up to date",
                self._name,
                -self._process.returncode,
                self._remedy,
            )

    def _end(self, process: "subprocess.Popen[str] | None") -> bool:
        """Close the pipes and wait; return False if the process had to be killed."""
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
    """Follow the run named on standard input until it has ended, then exit.

    Signals to the training processes are ignored: this process exits after them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    messages, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as a message

    def say(text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the training process was killed
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
    """Synchronise a store with a run's record, repeatedly until the run has ended.

    Args:
        bring_up: Synchronises once; gets RUNNING during the run. It is retried if it raises.
        endings: Receives how the run ended.
        say: Receives messages for the user.
        name: The store's name in messages.
        remedy: The command that does it afterwards.
        describe: Describes an exception of `bring_up`.
        interval_s: Seconds between two calls.

    Returns:
        Whether the store has everything.
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
        except Exception as error:  # the boundary between a run and an unknown store
            problem = describe(error)
        if status is not RunStatus.RUNNING:
            if problem is not None:
                say(f"{name} lacks what this run has logged: {problem}; {remedy} brings it up to date")
            return problem is None
        if problem is not None and before is None:
            say(f"{name} cannot be written and will be retried, training continues: {problem}")
        if problem is None and before is not None:
            say(f"{name} is up to date again")
        wait_s = interval_s if problem is None else min(max(2 * wait_s, interval_s), LONGEST_WAIT_S)
