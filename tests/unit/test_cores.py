"""What a busy process does with memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from hebrew_asr.corpus.preparation.workers import start_worker

_PROGRAM = """
from hebrew_asr.cores import keep_freed_memory
from tests.unit.test_cores import faults

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


pytestmark = pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc's malloc")


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        b"x" * (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_kept_where_a_variable_has_it_given_back():
    variables = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # as Dask's nannies set it
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=variables, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 50 * 100 and kept < 50


def test_workers_of_prepare_and_of_the_audit_keep_it(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_worker) as pool:
        pool.submit(faults).result()
        assert pool.submit(faults).result() < 50
