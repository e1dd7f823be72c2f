"""ds_configs/*.json are what budget.ds_config writes. UPDATE_GOLDEN=1 writes them anew."""

import os
from pathlib import Path

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import shipped_configs, to_json, write_shipped

FOLDER = Path(__file__).parents[2] / "ds_configs"

if os.environ.get("UPDATE_GOLDEN") == "1":
    write_shipped(FOLDER)


def test_the_folder_holds_the_shipped_files_and_no_others() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(shipped_configs())


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_file_is_as_generated(name: str) -> None:
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert written == to_json(shipped_configs()[name]), "run UPDATE_GOLDEN=1 pytest tests/golden, and read the diff"
