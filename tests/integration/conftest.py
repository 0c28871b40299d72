"""What most integration tests share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.launched import LaunchedStart
from tests.support.long_run import LONG, STEPS, SWITCH
from tests.support.tiny_task import events, free_port, make_task, train_arguments
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


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes which share the tests have together."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time: the first makes what all others find there."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def long_task(of_all_workers: Path) -> Path:
    """The task of ``LONG`` runs, whose evaluations take long enough to be stopped in."""
    with alone(of_all_workers / "long_task.lock"):
        task = of_all_workers / "long_task"
        return task if (task / "base").is_dir() else make_task(task, eval_clips=8)


@pytest.fixture(scope="session")
def long_run(of_all_workers: Path, long_task: Path, warm: WarmStart) -> Path:
    """A ``LONG`` run of two ranks that was never disturbed."""
    run, output = of_all_workers / "long_run", of_all_workers / "long_run.log"
    with alone(of_all_workers / "long_run.lock"):
        if not (run / "summary.json").is_file():
            codes = warm.run(train_arguments(long_task, run, *LONG), ranks=2, port=free_port(), output=output)
            assert codes == [0, 0], output.read_text()
    train = events(run, "train")
    assert [row["step"] for row in train] == list(range(1, STEPS + 1))
    assert [row["phase"] for row in train] == ["B"] * SWITCH + ["A"] * (STEPS - SWITCH)
    return run
