"""What a busy process does with memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import resource
from hebrew_asr.cores import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        b"x" * (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc's malloc")
def test_memory_is_kept_where_a_variable_has_it_given_back():
    variables = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # as Dask's nannies set it
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=variables, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 50 * 100 and kept < 50
