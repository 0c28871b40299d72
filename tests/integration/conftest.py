"""What most integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launched import LaunchedStart
from tests.support.tiny_task import make_task
from tests.support.warm import WarmStart


@pytest.fixture(scope="session")
def warm(request: pytest.FixtureRequest) -> Iterator[WarmStart]:
    """One for all: what it has imported takes ten seconds of a processor."""
    with LaunchedStart() if request.config.getoption("--real-launcher") else WarmStart() as start:
        yield start


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny task; a test that changes it makes its own."""
    return make_task(tmp_path_factory.mktemp("task"))
