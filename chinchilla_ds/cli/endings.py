"""How a rank leaves a run that does not reach its end: what there is to say is said once, and no rank stays behind.

The deepspeed launcher looks at its ranks every second; when one has exited with a code other than 0, it sends SIGTERM
to the others and returns that code. So:

- A user's error: rank 0 prints it and exits with 2. The other ranks meet the same one, or lose rank 0: they wait,
  silently, for the launcher. One that nobody ends within `PATIENCE_S` met the error alone, and prints it itself.
- A bug: the rank that meets it prints its traceback and exits with 1. The others lose their peer in a collective; what
  that raises on them is noise, so they wait for the launcher too.
- SIGINT and SIGTERM are raised as `Interrupted` in the main thread, so that open files and trackers are closed. A main
  thread that sits in a collective or a kernel never sees them; a watching thread then ends the process.
- A launcher that was killed tells nobody: the watching thread notices, and takes that for SIGTERM.
"""

import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ChinchillaError

PATIENCE_S = 10.0
"""How long a rank waits to be ended by the launcher; longer than another one that is ended before it may take."""
STUCK_S = 3.0
"""How long the main thread may take to see a signal."""
CLEAN_UP_S = 5.0
"""How long it may then take to leave."""
_LAUNCHER_POLL_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_waiting = threading.Event()
"""Set where the SIGTERM that comes is the launcher's, after another rank has said why."""

_LOST_PEER = re.compile(
    r"by peer|gloo/transport|broken pipe|recvValue|got 0 bytes|client socket|remote process exited|DistStoreError",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say when the rank at the other end is gone."""


class Interrupted(BaseException):
    """A signal asked the run to end. No Exception, so that nothing on its way takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended: 130 or 143."""
        return 128 + self.number


def end_well(work: Callable[[], None]) -> int:
    """Return the exit code of `work`: 0, 2 for a user's error, 130 or 143 for a signal; a bug keeps its traceback."""
    _waiting.clear()
    try:
        with signals_raised():
            return _carry_out(work)
    except Interrupted as interruption:
        return interruption.exit_code


def _carry_out(work: Callable[[], None]) -> int:
    try:
        work()
    except ChinchillaError as error:
        _report(error)
        return EXIT_CODE_USER_ERROR
    except Exception as error:
        if _has_lost_its_peer(error):
            _wait_for_the_launcher()
        raise
    return 0


def _report(error: ChinchillaError) -> None:
    where = ""
    if _rank() != 0:
        _wait_for_the_launcher()
        where = f"rank {_rank()}: "
    _say(*(f"error: {where}{problem}" for problem in error.problems))


def _has_lost_its_peer(error: Exception) -> bool:
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return not alone and isinstance(error, RuntimeError | OSError) and bool(_LOST_PEER.search(str(error)))


def _wait_for_the_launcher() -> None:
    _waiting.set()
    time.sleep(PATIENCE_S)


def _say(*lines: str) -> None:
    with suppress(OSError):  # nobody listens any more
        sys.stdout.flush()
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def _rank() -> int:
    return int(os.environ["RANK"])


# ---- signals ---------------------------------------------------------------------------------------------------------


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Interrupted` for the first SIGINT or SIGTERM; later ones are ignored while the process cleans up.

    Elsewhere than in the main thread Python admits no handlers, and nothing happens here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not seen.is_set():
            seen.set()
            raise Interrupted(number)

    alarm, bell = socket.socketpair()
    bell.setblocking(False)
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    fd_before = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(alarm, seen), name="endings", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        bell.close()  # by which the thread ends
        watch.join()


def _watch(alarm: socket.socket, seen: threading.Event) -> None:
    """Wait for a signal, which Python's C handler writes to the other end; see to it that the process ends."""
    ancestors = _launchers()
    with alarm:
        while True:
            if not select.select([alarm], [], [], _LAUNCHER_POLL_S)[0]:
                if ancestors and _launchers() != ancestors:
                    ancestors = ()
                    os.kill(os.getpid(), signal.SIGTERM)
                continue
            received = alarm.recv(1)
            if not received:
                return
            if received[0] in _SIGNALS:
                _enforce(received[0], alarm, seen)
                return


def _enforce(number: int, alarm: socket.socket, seen: threading.Event) -> None:
    """Say what happened, and end the process unless it sees the signal, and then leaves, in time."""
    if _rank() == 0 and not _waiting.is_set():
        _say(str(Interrupted(number)))
    in_time = seen.wait(STUCK_S)
    deadline_s = time.monotonic() + CLEAN_UP_S
    while in_time and (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([alarm], [], [], left_s)[0] and not alarm.recv(64):
            return
    os._exit(128 + number)


def _launchers() -> tuple[int, ...]:
    """Return the process ids of the deepspeed launcher and of the `deepspeed` command above it; none without them."""
    launcher = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        if b"deepspeed.launcher.launch" in Path(f"/proc/{launcher}/cmdline").read_bytes():
            after_name = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()
            return launcher, int(after_name[1])
    return ()
