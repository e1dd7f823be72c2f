"""Work that one rank does for all: its result, or its user error, reaches every rank."""

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from chinchilla_ds.distributed.rendezvous import Store
from chinchilla_ds.errors import ChinchillaError

T = TypeVar("T")

_DONE = "rank_zero/done"
_POLL_S = 0.5


def run_on_rank_zero(work: Callable[[], T], *, store: Store | None = None) -> T:
    """Run `work` on global rank 0 and return its result on every rank.

    Args:
        work: The function. The other ranks wait for it in a collective, which watchdogs eventually consider hung.
        store: For work that may take hours: where the others poll for its end, without a collective.

    Raises:
        ChinchillaError: `work` raised it; every rank raises it, so that all exit together. Anything else that `work`
            raises is a bug: rank 0 exits with its traceback, and the launcher ends the others.
    """
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except ChinchillaError as error:
            outcome[0] = error
        if store is not None:
            store.set(_DONE, "1")
    elif store is not None:
        while not store.check([_DONE]):
            time.sleep(_POLL_S)
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], ChinchillaError):
        raise outcome[0]
    return cast(T, outcome[0])
