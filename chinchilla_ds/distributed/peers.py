"""Messages between ranks outside collectives: that they are alive, and why one exits.

A collective waits for a rank that will never arrive; a launcher ends only the ranks of its own machine, and srun none.
So every rank watches the store where they met, on its own connection:

- A rank that exits writes its reason and exit code there, and the others follow.
- Each also writes a heartbeat there. Until the first step rank 0 checks that none has stopped: up to then ranks
  wait for each other without a limit, since rank 0 may prepare text for days.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from chinchilla_ds.distributed.launch import Place
from chinchilla_ds.distributed.rendezvous import Store, connect
from chinchilla_ds.errors import EXIT_CODE_HUNG
from chinchilla_ds.structured import build, parse_json

POLL_S = 1.0
SILENT_S = 120.0
"""A rank without a heartbeat for this long is dead, or its machine is; imports and kernels take seconds."""
SEEN_S = 2 * POLL_S
"""Time for the others to read why this rank exits: the store may end with it."""
_LEFT = "peers/left"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Departure:
    """Why a rank exits."""

    rank: int
    local_rank: int
    """Local rank on its machine; -1 if it cannot have reported the reason itself."""
    exit_code: int
    reason: str


class Peers:
    """The other ranks of a run; `leave` is called once, in a thread, when this rank must exit because of one."""

    def __init__(self, store: Store, *, place: Place, leave: Callable[[Departure], object]) -> None:
        """Start listening; does nothing with a single rank.

        Args:
            store: where the ranks have met.
            place: this rank's place.
            leave: called with the departure that this rank must follow.
        """
        self._place, self._leave = place, leave
        self._store = connect(store)
        self._lock = threading.Lock()  # a connection must answer one request before the next
        self._starting, self._over = True, threading.Event()
        self._answered_s = time.monotonic()
        self._gone = False
        threads = (self._listen, self._await_answers) if place.world_size > 1 else ()
        self._threads = [
            threading.Thread(target=target, name=f"peers{target.__name__}", daemon=True) for target in threads
        ]
        for thread in self._threads:
            thread.start()

    def begun(self) -> None:
        """Stop checking heartbeats: from the first step on, a watchdog knows the time limits."""
        self._starting = False

    def close(self) -> None:
        """Stop listening; every rank does so before any of them exits."""
        self._over.set()
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(SEEN_S)

    def announce(self, *, exit_code: int, reason: str) -> None:
        """Tell the others why this rank exits; the first reason of any rank counts."""
        if self._place.world_size == 1 or self._over.is_set():
            return
        self._over.set()
        departure = Departure(
            rank=self._place.rank, local_rank=self._place.local_rank, exit_code=exit_code, reason=reason
        )
        telling = threading.Thread(target=self._tell, args=(departure,), daemon=True)
        telling.start()
        telling.join(SEEN_S)
        if self._place.rank == 0:
            time.sleep(SEEN_S)

    def _tell(self, departure: Departure) -> None:
        with suppress(RuntimeError):  # the store is gone, and so are the readers
            connect(self._store).compare_set(_LEFT, "", json.dumps(dataclasses.asdict(departure)))

    def _listen(self) -> None:
        """Check for a rank that has exited, and write a heartbeat."""
        heard = _Heard(self._place)
        count = 0
        while not self._over.wait(POLL_S):
            try:
                if self._store.check([_LEFT]):
                    self._go(build(Departure, parse_json(self._store.get(_LEFT), where=_LEFT), where=_LEFT))
                    return
                count += 1
                self._store.set(f"peers/alive/{self._place.rank}", str(count))
                if self._starting and (silent := heard.silent(self._store)):
                    self._store.compare_set(_LEFT, "", json.dumps(dataclasses.asdict(silent)))
            except RuntimeError as error:
                if self._starting and not self._over.is_set():
                    self._go(_lost_store(str(error)))
                return
            self._answered_s = time.monotonic()

    def _await_answers(self) -> None:
        """Detect that the store's machine no longer answers: a request then blocks in C without a limit."""
        last_s = time.monotonic()
        while not self._over.wait(POLL_S) and self._starting:
            now_s = time.monotonic()
            if now_s - last_s > 2 * POLL_S:
                self._answered_s = now_s  # this process itself was suspended
            last_s = now_s
            if now_s - self._answered_s > SILENT_S:
                self._go(_lost_store(f"no answer in {SILENT_S:.0f} s"))
                return

    def _go(self, departure: Departure) -> None:
        with self._lock:
            if self._gone or self._over.is_set():
                return
            self._gone = True
        self._over.set()
        self._leave(departure)


class _Heard:
    """When rank 0 last received a heartbeat of each other rank."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._looked_s = time.monotonic()

    def silent(self, store: Store) -> Departure | None:
        """Return the departure of a rank that has been silent for too long, on rank 0."""
        if self._place.rank != 0:
            return None
        now_s = time.monotonic()
        if now_s - self._looked_s > SILENT_S / 4:
            self._signs.clear()  # this process was suspended, and perhaps the others
        self._looked_s = now_s
        for rank in range(1, self._place.world_size):
            name = f"peers/alive/{rank}"
            sign = store.get(name) if store.check([name]) else b""
            before, since_s = self._signs.setdefault(rank, (sign, now_s))
            if sign != before:
                self._signs[rank] = sign, now_s
            elif now_s - since_s > SILENT_S:
                why = (
                    f"rank {rank} has sent no heartbeat for {SILENT_S:.0f} s: it, or its machine, is dead or suspended"
                )
                return Departure(rank=rank, local_rank=-1, exit_code=EXIT_CODE_HUNG, reason=why)
        return None


def _lost_store(message: str) -> Departure:
    why = f"rank 0, which holds the store for messages between ranks, is gone ({message.splitlines()[0]})"
    return Departure(rank=0, local_rank=-1, exit_code=EXIT_CODE_HUNG, reason=why)
