import io
import json
from typing import Any

import pytest

from chinchilla_ds.tracking.process import BackendProcessError, ProcessBackend, answer_requests
from chinchilla_ds.tracking.tracker import RunStatus
from tests.unit.tracking.test_background import ListBackend


def answered(backend: ListBackend, *requests: list[Any]) -> list[str | None]:
    answers = io.StringIO()
    lines = [json.dumps(request) for request in requests]
    answer_requests(lambda settings: backend, requests=lines, answers=answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


RECORD = {"metrics": {"loss": 1.5}, "step": 3, "time_s": 1000.0}


def test_requests_reach_the_backend_in_order() -> None:
    backend = ListBackend()
    requests = [["open", {}], ["log_params", {"a": "1"}], ["write", [RECORD]], ["close", "FINISHED"]]
    assert answered(backend, *requests) == [None] * 4
    assert backend.seen == [{"a": "1"}, (3, {"loss": 1.5}), RunStatus.FINISHED]


def test_a_run_whose_process_died_has_failed() -> None:
    backend = ListBackend()
    answered(backend, ["open", {}], ["write", [RECORD]])
    assert backend.seen[-1] is RunStatus.FAILED


def test_errors_are_answered_and_the_next_request_is_carried_out() -> None:
    backend = ListBackend(error=OSError("disk full"))
    answers = answered(backend, ["open", {}], ["write", [RECORD]], ["close", "FINISHED"])
    assert answers == [None, "OSError: disk full", None]


def test_a_process_that_ends_at_once_is_an_error() -> None:
    with pytest.raises(BackendProcessError, match="its process has ended"):
        ProcessBackend(module="chinchilla_ds.units", settings={}, environment={})
