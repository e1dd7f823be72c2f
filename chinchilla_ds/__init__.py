"""chinchilla-ds: a compute budget goes in, the best language model that budget can buy comes out.

    from chinchilla_ds import RunConfig, plan, train

Names are imported when they are first used: `import chinchilla_ds` loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chinchilla_ds.config import RunConfig
    from chinchilla_ds.library import evaluate, export, fit, generate, load, plan, prepare
    from chinchilla_ds.objective import Objective
    from chinchilla_ds.runs.own_loop import initialize
    from chinchilla_ds.runs.train import train
    from chinchilla_ds.training.callback import Callback

__all__ = [
    "RunConfig",
    "plan",
    "fit",
    "prepare",
    "train",
    "initialize",
    "load",
    "generate",
    "evaluate",
    "export",
    "Callback",
    "Objective",
]

_PLACES = {
    "RunConfig": "chinchilla_ds.config",
    "plan": "chinchilla_ds.library",
    "fit": "chinchilla_ds.library",
    "prepare": "chinchilla_ds.library",
    "train": "chinchilla_ds.runs.train",
    "initialize": "chinchilla_ds.runs.own_loop",
    "load": "chinchilla_ds.library",
    "generate": "chinchilla_ds.library",
    "evaluate": "chinchilla_ds.library",
    "export": "chinchilla_ds.library",
    "Callback": "chinchilla_ds.training.callback",
    "Objective": "chinchilla_ds.objective",
}
"""Module of each public name; no submodule of this package bears one of them, which would hide it."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
