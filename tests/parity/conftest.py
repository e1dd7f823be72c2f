"""What the parity tests share."""

from collections.abc import Iterator

import pytest

from tests.parity.harness import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The references are tiny."""
    with one_thread():
        yield
