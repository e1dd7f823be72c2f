"""One rank of a world, as the deepspeed launcher sets it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import write_shipped
from chinchilla_ds.runs import train


@pytest.fixture
def rank_zero_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_environment(world_size: int) -> None:
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_SIZE": world_size}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")

    monkeypatch.setattr(train, "device_type", lambda: "cpu")
    set_environment(1)
    return set_environment


@pytest.fixture
def ds_configs(tmp_path: Path) -> Path:
    write_shipped(tmp_path / "ds_configs")
    return tmp_path / "ds_configs"
