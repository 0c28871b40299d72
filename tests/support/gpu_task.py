"""What GPU tests of whole runs share: a model large enough to be worth a GPU, a profile, and a start."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hebrew_asr.demo.tiny import TinySpec
from tests.support.tiny_task import BF16, ROOT, write_profile

SPEC = TinySpec(
    d_model=256,
    encoder_layers=4,
    encoder_ffn_dim=512,
    downsample_hidden_size=64,
    hidden_size=512,
    num_hidden_layers=6,
    head_dim=64,
    intermediate_size=1024,
    vocabulary=300,
)


def gpu_profile(path: Path, *, stage: int, micro: int, ranks: int = 1, cuda_graphs: bool = False) -> Path:
    """Write a bf16 profile, eager or compiled and replayed as CUDA graphs; returns ``path``."""
    keys = {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage}, **BF16}
    hardware = {"accelerator": "cuda", "num_ranks": ranks, "compile": cuda_graphs, "cuda_graphs": cuda_graphs}
    return write_profile(path, _hardware=hardware, **keys)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Any wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_on_gpu(command: list[str]) -> str:
    """Run to a good end; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
