"""Makes ``tests.support`` importable however pytest is started, and sums independent of the number of cores."""

import os
import sys
from pathlib import Path

import pytest

# Read when torch is imported, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin for work hold up others' where a machine is shared
sys.path.insert(0, str(Path(__file__).parents[1]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's tests."""
    parser.addoption(
        "--real-launcher", action="store_true", help="start every training run by DeepSpeed's launcher; 20 s more each"
    )
