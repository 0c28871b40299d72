"""Makes ``tests.support`` importable however pytest is started, and sums independent of the number of cores."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in every process that a test starts
sys.path.insert(0, str(Path(__file__).parents[1]))
