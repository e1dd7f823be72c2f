"""How a rank exits a run that does not reach its end: the reason is printed once, and no rank is left behind.

The deepspeed launcher polls its ranks every second; when one has exited with a code other than 0, it sends SIGTERM
to the others and returns that code. So:

- A user's error: rank 0 prints it and exits with 2. The other ranks have the same one, or lose rank 0: they wait
  silently for the launcher. A rank that is not ended within `PATIENCE_S` had the error alone, and prints it itself.
- A bug: the rank that hits it prints its traceback and exits with 1. The others lose their peer in a collective; the
  resulting exceptions are noise, so they wait for the launcher too.
- SIGINT, SIGTERM and SIGUSR1 ask a run to stop during its steps (`processes.stopping`): it saves and exits with 85. A
  second one of the same kind, one outside the steps, and the SIGTERM of a launcher that has lost another rank are
  raised as `Interrupted` in the main thread, so that open files and trackers are closed. A main thread blocked in a
  collective or a kernel never sees them; a watching thread then ends the process.
- A launcher that was killed sends no signal: the watching thread detects it, and treats it like SIGTERM.
- A rank that was killed cannot report: the lowest rank left on its machine names it (`processes.siblings`).
- A rank that exits tells all others why (`distributed.peers`), and they exit with the same code: on other
  machines, and under srun, no launcher ends them.
- A library that calls `exit()` has not finished the run: that is an error, whatever its code.
"""

import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from chinchilla_ds.distributed.launch import LaunchError, Place, rank_of, read_place
from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ChinchillaError, ConfigError
from chinchilla_ds.processes.siblings import Gone, Siblings
from chinchilla_ds.processes.stopping import SIGNALS, StopRequest

if TYPE_CHECKING:
    from chinchilla_ds.distributed.peers import Departure

_T = TypeVar("_T")
PATIENCE_S = 10.0
"""How long a rank waits to be ended by the launcher; longer than a rank that is ended before it may take."""
STUCK_S = 3.0
"""How long the main thread may take to see a signal."""
CLEAN_UP_S = 5.0
"""How long it may then take to exit."""
FOLLOW_S = 3.0
"""Wait after another rank has reported why it exits: this one may have the same problem, or be ended by the
launcher."""
_LAUNCHER_POLL_S = 0.25
"""Polling interval, shorter than the launcher's second: once the launcher has reaped a process, it is gone."""
_DEATH_SEEN_S = 1.0
_waiting = threading.Event()
"""Set when an expected SIGTERM is the launcher's, after another rank has reported why."""
_siblings = Siblings()
_order: "_Order | None" = None
"""Set when this rank must exit because another one has."""

_LOST_PEER = re.compile(
    r"by peer|gloo/transport|broken pipe|recvValue|got 0 bytes|client socket|remote process exited|DistStoreError",
    re.IGNORECASE,
)
"""Messages of gloo, NCCL and torch's store when the rank at the other end is gone."""


class Interrupted(BaseException):
    """A signal asked the run to end. Not an Exception, so that no handler on its way treats it as a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """A shell's exit code for a process ended by a signal: 130, 143 or 138."""
        return 128 + self.number


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How this rank's work ends."""

    exit_code: int
    reason: str = ""
    """The reason, unless it is the plan's end or a request to stop; one line per problem."""
    asked: bool = False
    """Whether a signal asked for it."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    exit_code: int
    reason: str
    speaks: bool


_hooks: list[Callable[[Ending], object]] = []


def at_ending(hook: Callable[[Ending], object]) -> None:
    """Register a hook that is called once the outcome of `end_well` is known, perhaps in another thread."""
    _hooks.append(hook)


def tell(ending: Ending) -> None:
    """Call the hooks, each with the time limit of a clean-up: their disk may be the cause of a hang."""
    while _hooks:
        telling = threading.Thread(target=_hooks.pop(0), args=(ending,), daemon=True)
        telling.start()
        telling.join(CLEAN_UP_S)


def end_well(work: Callable[[], int], *, stop: StopRequest | None = None) -> int:
    """Return the exit code of `work`: its own, 2 for a user's error, 128 + n for signal n; a bug keeps its traceback.

    Args:
        work: The function.
        stop: Receives signals during the steps; None: every signal ends the work at once.
    """
    _forget()
    try:
        with signals_raised(stop or StopRequest()):
            return _carry_out(work)
    except Interrupted as interruption:
        ending = _interrupted(interruption)
        tell(ending)
        return ending.exit_code


def raise_well(work: Callable[[], _T], *, stop: StopRequest, exit_code_of: Callable[[_T], int]) -> _T:
    """Return the result of `work`, for a program that continues: as `end_well`, but errors are raised.

    Args:
        work: The function.
        stop: Receives signals during the steps.
        exit_code_of: The exit code for a result, for the hooks.

    Raises:
        KeyboardInterrupt: Ctrl-C when no stop can be honoured.
        SystemExit: another signal then, or another rank has exited; with the exit code that `end_well` would return.
    """
    _forget()
    try:
        with signals_raised(stop):
            result = work()
            tell(Ending(exit_code=exit_code_of(result)))
            return result
    except Interrupted as interruption:
        ending = _interrupted(interruption)
        tell(ending)
        if interruption.number == signal.SIGINT and _order is None:
            raise KeyboardInterrupt from None
        raise SystemExit(ending.exit_code) from None
    except ChinchillaError as error:
        tell(Ending(exit_code=EXIT_CODE_USER_ERROR, reason=str(error)))
        raise
    except Exception as error:
        tell(Ending(exit_code=1, reason=f"{type(error).__name__}: {error}"))
        raise


def exit_process(work: Callable[[], int], /) -> NoReturn:
    """Exit with the code that `work` returns, without tearing torch down.

    After a failure a process group aborts or hangs in its destructors: the exit code would be lost, and
    ranks would remain.
    """
    try:
        exit_code = work()
    except Exception:
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def _forget() -> None:
    """Reset the state of earlier work."""
    global _order
    _waiting.clear()
    _hooks.clear()
    _order = None


def _carry_out(work: Callable[[], int]) -> int:
    try:
        exit_code = work()
        tell(Ending(exit_code=exit_code))
        return exit_code
    except ChinchillaError as error:
        if _rank() == 0:
            _report(error)
        tell(Ending(exit_code=EXIT_CODE_USER_ERROR, reason=str(error)))
        if _rank() != 0:
            _report(error)
        return EXIT_CODE_USER_ERROR
    except Exception as error:
        if _has_lost_its_peer(error):
            _say_who_is_gone()
            _wait_for_the_launcher()
        tell(Ending(exit_code=1, reason=f"{type(error).__name__}: {error}"))
        raise


@contextmanager
def no_library_exits() -> Iterator[None]:
    """Raise RuntimeError if a library calls `exit()`, as DeepSpeed's autotuning does, with 0 and without a result."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"a library has called exit({error.code!r}), before the work was done") from error


def leave_hung(exit_code: int) -> None:
    """End the process for the watchdog."""
    tell(Ending(exit_code=exit_code, reason="no step within hang_timeout_s; stacks-rank*.txt show where it hangs"))
    os._exit(exit_code)


def follow(departure: "Departure", *, place: Place) -> None:
    """Exit because another rank has, with its exit code; one rank per machine prints the reason."""
    global _order
    time.sleep(FOLLOW_S)
    machine = departure.rank - departure.local_rank
    there = departure.local_rank >= 0 and place.rank - place.local_rank == machine
    speaks = place.local_rank == (1 if there and departure.local_rank == 0 else 0)
    if there and departure.rank == 0:
        speaks = False  # rank 0 has printed it here
    lines = departure.reason.splitlines()
    named = lines if departure.local_rank < 0 else [f"rank {departure.rank}: {line}" for line in lines]
    _order = _Order(exit_code=departure.exit_code, reason="\n".join(named), speaks=speaks)
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupted(interruption: Interrupted) -> Ending:
    """Return the ending for a signal: a user's request, or the end of a run that another rank has left."""
    if _order is not None:
        return Ending(exit_code=_order.exit_code, reason=_order.reason)
    gone = _siblings.gone()
    killed = "; ".join(str(process) for process in gone if not process.left_by_itself)
    asked = not gone and not _waiting.is_set()
    why = killed or (str(interruption) if asked else "another rank has left")
    return Ending(exit_code=interruption.exit_code, reason=why, asked=asked)


def _report(error: ChinchillaError) -> None:
    where = ""
    if _rank() != 0:
        if isinstance(error, LaunchError):
            return
        _wait_for_the_launcher()
        where = f"rank {_rank()}: "
    _say(*(f"error: {where}{problem}" for problem in error.problems))


def _has_lost_its_peer(error: Exception) -> bool:
    try:
        alone = read_place().world_size == 1
    except ConfigError:
        alone = False
    return not alone and isinstance(error, RuntimeError | OSError) and bool(_LOST_PEER.search(str(error)))


def _say_who_is_gone() -> None:
    """Report, on one rank, which one was killed; one that exited has reported why.

    A process that dies closes its connections a moment before it counts as dead.
    """
    deadline_s = time.monotonic() + _DEATH_SEEN_S
    while not (gone := _siblings.gone()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    _report_killed(gone)


def _report_killed(gone: Sequence[Gone]) -> None:
    killed = [process for process in gone if not process.left_by_itself]
    if killed and _siblings.is_lowest_left(own_rank=_rank()):
        _say(*(f"error: {process}; the others exit" for process in killed))


def _wait_for_the_launcher() -> None:
    _waiting.set()
    time.sleep(PATIENCE_S)


def _say(*lines: str) -> None:
    with suppress(OSError):  # the reader is gone
        sys.stdout.flush()
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def _rank() -> int:
    return rank_of()


# ---- signals ---------------------------------------------------------------------------------------------------------


@contextmanager
def signals_raised(stop: StopRequest) -> Iterator[None]:
    """Pass signals to `stop`; raise `Interrupted` for the first that it does not accept, and ignore later ones.

    Outside the main thread Python allows no handlers, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen, judge = threading.Event(), _Judge(stop)

    def handle(number: int, frame: FrameType | None) -> None:
        if not judge.is_request(number) and not seen.is_set():
            seen.set()
            raise Interrupted(number)

    alarm, bell = socket.socketpair()
    bell.setblocking(False)
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(alarm, seen, _Judge(stop)), name="endings", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        bell.close()  # which ends the thread
        watch.join()


class _Judge:
    """Distinguishes requests to stop from orders to exit. Handler and thread each have one, since both see all."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._seen: set[int] = set()

    @property
    def takes_steps(self) -> bool:
        """Whether the run is taking steps, in which every rank waits for all others."""
        return self._stop.can_be_honoured

    def is_request(self, number: int) -> bool:
        """Return whether this signal asks for a stop.

        A second Ctrl-C does not. Further SIGTERMs do: one comes to the whole process group, one from the launcher.
        Neither does the SIGTERM of a launcher that has lost another rank.
        """
        again = number == signal.SIGINT and number in self._seen
        self._seen.add(number)
        ordered = _waiting.is_set() or _order is not None or bool(_siblings.gone())
        return not again and not ordered and self._stop.take(number)


def _watch(alarm: socket.socket, seen: threading.Event, judge: _Judge) -> None:
    """Wait for a signal, which Python's C handler writes to the other end, and make sure that the process exits."""
    ancestors, alone_since_s = _launchers(), math.inf
    with alarm:
        while True:
            if not select.select([alarm], [], [], _LAUNCHER_POLL_S)[0]:
                _siblings.refresh()
                alone_since_s = _leave_if_alone(judge, alone_since_s)
                if ancestors and _launchers() != ancestors:
                    ancestors = ()
                    os.kill(os.getpid(), signal.SIGTERM)
                continue
            received = alarm.recv(1)
            if not received:
                return
            if received[0] not in SIGNALS:
                continue
            if judge.is_request(received[0]):
                if _rank() == 0:
                    _say(_promise(received[0]))
                continue
            _enforce(received[0], alarm, seen)
            return


def _promise(number: int) -> str:
    more = "; Ctrl-C once more to exit without saving" if number == signal.SIGINT else ""
    return f"{signal.Signals(number).name}: finishing the step, then saving{more}"


def _leave_if_alone(judge: _Judge, since_s: float) -> float:
    """End the process if another rank was killed in a step long ago: it waits for that rank, and no launcher ends it.

    Returns:
        When a killed rank was first seen; infinite if none was.
    """
    gone = [process for process in _siblings.gone() if not process.left_by_itself]
    if not gone or not judge.takes_steps:
        return math.inf
    if time.monotonic() - since_s > PATIENCE_S:
        _report_killed(gone)
        tell(Ending(exit_code=1, reason="; ".join(str(process) for process in gone)))
        os._exit(1)
    return min(since_s, time.monotonic())


def _enforce(number: int, alarm: socket.socket, seen: threading.Event) -> None:
    """Report what happened, and end the process unless it handles the signal, and then exits, in time."""
    if _order is not None:
        if _order.speaks:
            _say(*(f"error: {line}" for line in _order.reason.splitlines()))
    elif not _waiting.is_set():
        gone = _siblings.gone()
        _report_killed(gone)
        if _rank() == 0 and not gone:
            _say(str(Interrupted(number)))
    in_time = seen.wait(STUCK_S)
    deadline_s = time.monotonic() + CLEAN_UP_S
    while in_time and (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([alarm], [], [], left_s)[0] and not alarm.recv(64):
            return
    ending = _interrupted(Interrupted(number))
    tell(ending)
    os._exit(ending.exit_code)


def _launchers() -> tuple[int, ...]:
    """Return the process ids of the deepspeed launcher and of the `deepspeed` command above it, or of torchrun.

    Empty without them. The daemons of srun and mpirun end their tasks themselves.
    """
    launcher = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        command = Path(f"/proc/{launcher}/cmdline").read_bytes()
        if b"deepspeed.launcher.launch" in command:
            after_name = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()
            return launcher, int(after_name[1])
        if b"torchrun" in command or b"torch.distributed.run" in command:
            return (launcher,)
    return ()
