from pathlib import Path

import pytest

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.tracking.record import MAX_PARAM_CHARACTERS, RunRecord, load_or_begin


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert RunRecord.load(tmp_path) is None
    record = RunRecord.new(started_s=5.0).with_params({"a": 1}).with_artifact(tmp_path / "x" / "y", run_folder=tmp_path)
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record == load_or_begin(tmp_path)
    assert record.artifacts == ("x/y",)
    assert RunRecord.new().id != RunRecord.new().id


def test_the_first_value_of_a_setting_stays_and_the_last_stands_beside_it() -> None:
    record = RunRecord.new().with_params({"a": 1, "b": 1})
    record = record.with_params({"a": 2, "c": "x" * 10_000})
    assert record.params == {"a": "1", "b": "1", "c": "x" * MAX_PARAM_CHARACTERS}
    assert record.continued == {"a": "2"}
    assert record.with_params({"a": 1}).continued == {"a": "1"}, "back again"
    assert record.with_params({"a": 2}) == record


@pytest.mark.parametrize(
    "content", ["", "[]", '{"id": 1}', '{"id": "x", "started_s": -1}', '{"id": "", "started_s": 1}']
)
def test_a_damaged_record_is_put_aside_and_named(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(TrackingError):
        RunRecord.load(tmp_path)
    record = load_or_begin(tmp_path)
    assert RunRecord.load(tmp_path) == record
    assert (tmp_path / "tracking.json.damaged").read_text() == content
    assert "it is now tracking.json.damaged" in caplog.text
