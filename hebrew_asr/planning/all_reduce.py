"""How fast the ranks of this machine reduce gradients: real ranks, real collectives, for a bounded time.

``python -m hebrew_asr.planning.all_reduce ACCELERATOR`` is one of the ranks; :func:`bus_gb_per_s` starts them all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hebrew_asr.checkpoints.disk_space import MASTER_AND_MOMENTS_BYTES, DiskNeed
from hebrew_asr.config.profiles import Profile
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.launching.processes import free_port
from hebrew_asr.planning.doctor_access import Outcome

_LIMIT_S = 90.0
"""For all ranks to load torch, to meet and to measure."""
_SLOW_GB_PER_S = 10.0
"""Below this, what PCIe gives: a step of 8 clips waits longer for its gradients than it computes."""
_MEASURED_S = 1.0
_ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 20}
"""fp32: 256 MiB, as much as a bucket of gradients, and 4 MiB."""


def reduction(num_gpus: int, need: DiskNeed | None, profile: Profile) -> Outcome:
    """What ``doctor`` says of the visible GPUs: state, finding, remedy. ``need``: of the run, where it is known."""
    if num_gpus < 2:
        return "ok", "not measured: there are fewer than two GPUs", ""
    try:
        rate = bus_gb_per_s(num_gpus, "cuda", limit_s=_LIMIT_S)
    except EnvironmentProblem as error:
        fix = "NCCL_DEBUG=INFO says more; NCCL_P2P_DISABLE=1 goes around a broken link"
        return "fail", f"{num_gpus} GPUs cannot add up gradients: {error}", fix
    says = f"{rate:,.0f} GB/s between {num_gpus} GPUs"
    if need is not None:
        width = 2 if profile.config.get("communication_data_type") == "bf16" else 4
        gradients = width * need.checkpoint // MASTER_AND_MOMENTS_BYTES
        # A rank sends each owner its part; without owners, at stage 0, the sums come back too.
        sent = (1 + (profile.zero_stage == 0)) * (num_gpus - 1) / num_gpus * gradients
        says += f"; the gradients of a step take at most {sent / (rate * 1e6):,.0f} ms"
    if rate < _SLOW_GB_PER_S:
        return "warn", says, "nothing, if the price is right; else take GPUs that are linked by NVLink"
    return "ok", says, ""


def bus_gb_per_s(num_ranks: int, accelerator: str, *, limit_s: float) -> float:
    """All-reduce rate in GB/s, as nccl-tests count it: bytes that leave each rank, ``2 (n - 1) / n`` of the buffer.

    Args:
        num_ranks: on the visible GPUs, in order.
        accelerator: ``cuda`` (NCCL) or ``cpu`` (gloo).
        limit_s: after which ranks that have not ended are killed.

    Raises:
        EnvironmentProblem: the ranks did not all end in time, or one failed; with what was said last.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    command = [sys.executable, "-m", __name__, accelerator]
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = Path(folder) / "rate"
        said = stack.enter_context((Path(folder) / "said").open("w+b"))
        stack.callback(_end, started)
        for rank in range(num_ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "RATE_FILE": str(out)}
            environment = {**os.environ, **meeting, **place}
            started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
        problem = _wait(started, time.monotonic() + limit_s, limit_s)
        if problem is None and out.is_file():
            return float(out.read_text())
        lines = (Path(folder) / "said").read_text("utf-8", "replace").strip().splitlines()
        raise EnvironmentProblem(f"{problem or 'no rate was measured'}: {lines[-1] if lines else 'nothing was said'}")


def _wait(started: list[subprocess.Popen[bytes]], deadline: float, limit_s: float) -> str | None:
    """What is wrong; None where all ranks have ended well. The others wait in vain for one that has failed."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                return f"rank {rank} ended with code {code}"
        if None not in codes:
            return None
        if time.monotonic() > deadline:
            return f"the ranks had not reduced anything after {limit_s:g} s"
        time.sleep(0.05)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.kill()
        process.wait()


def _measure(accelerator: str) -> None:
    """One rank; the first writes the rate."""
    import torch

    from hebrew_asr.engine import dist

    ranks = dist.start(accelerator)
    values = torch.zeros(_ELEMENTS[accelerator], device=ranks.device)
    for _ in range(3):
        ranks.sum(values)
    rounds, seconds, wanted = 0, 0.0, 4
    while ranks.any(seconds < _MEASURED_S):
        ranks.barrier()
        begin = time.perf_counter()
        for _ in range(wanted):
            ranks.sum(values)
        values[0].item()  # waits for the device
        seconds += time.perf_counter() - begin
        rounds += wanted
    moved = 2 * (ranks.size - 1) / ranks.size * values.nbytes * rounds
    if ranks.is_main:
        Path(os.environ["RATE_FILE"]).write_text(repr(moved / seconds / 1e9))
    ranks.barrier()
    dist.stop()


if __name__ == "__main__":
    _measure(sys.argv[1])
