"""The kernels of attention in Triton's interpreter: what they compute. How fast, and in bfloat16, a GPU has to say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.tiny_task import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def test_kernels_equal_attention_by_segment():
    pytest.importorskip("triton", reason="torch for CUDA brings it")
    command = [sys.executable, "-m", "tests.support.interpreted"]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, check=True)
