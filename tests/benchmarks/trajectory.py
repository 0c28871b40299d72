"""Learning is unchanged by packing and compiling: two trainings from one seed, loss by loss.

    python tests/benchmarks/trajectory.py --steps 200
    python tests/benchmarks/trajectory.py --steps 200 --device cuda [--bf16]

The demo's recipe and tiny model on 1,600 made clips of its data, so that the phase changes after step 100. Compared are
transformers' own forward, one clip at a time, eager; the packed one, eager; and the packed one, compiled. The packed
one with its clips in reverse order is the control: the same sums in another order, so what it differs by is rounding.
Rounding grows from step to step, as in any training; the tolerance is a multiple of what the control grows to.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two trainings share the machine
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.support.trajectory import EARLY, Task, allowed, native, packed

CLIPS = 1_600


def _run(name: str, folder: Path, steps: int, device: str, bf16: bool, backend: str) -> tuple[str, list[float], float]:
    builds = {
        "native": native,
        "packed": packed(),
        "control": packed(reverse=True),
        "compiled": packed(backend=backend),
    }
    torch.backends.cudnn.allow_tf32 = False  # its rounding would hide what is looked for
    task = Task(folder, clips=CLIPS, device=device, bf16=bf16)
    started = time.monotonic()
    return name, task.losses(builds[name], steps), time.monotonic() - started


def main() -> int:
    """Train, print the differences and whether they are within tolerance; 1 if they are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="weights and activations in bfloat16")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trajectory-") as name:
        folder = Path(name)
        Task(folder, clips=CLIPS)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(_run, kind, folder, options.steps, options.device, options.bf16, options.backend)
                for kind in ("native", "compiled", "packed", "control")
            ]
            finished = [job.result() for job in jobs]
    losses = {kind: values for kind, values, _ in finished}
    print("seconds: " + ", ".join(f"{kind} {seconds:.0f}" for kind, _, seconds in finished))
    print(f"loss {losses['native'][0]:.4f} to {losses['native'][-1]:.4f} in {options.steps} steps")
    print(f"{'difference of':<22}{f'max, first {EARLY}':>16}{'max':>12}{'mean':>12}")
    found = {}
    for one, other in (("packed", "control"), ("packed", "native"), ("compiled", "native"), ("compiled", "packed")):
        apart = [abs(a - b) for a, b in zip(losses[one], losses[other], strict=True)]
        found[one, other] = apart
        print(f"{f'{one}, {other}':<22}{max(apart[:EARLY]):>16.2e}{max(apart):>12.2e}{sum(apart) / len(apart):>12.2e}")
    outside = allowed(found["compiled", "native"], found["packed", "control"])
    print(outside or "within tolerance")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
