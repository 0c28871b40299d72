"""Every start through DeepSpeed's launcher, as users start; the tests stay the same (``--real-launcher``)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.support.tiny_task import ROOT, TRAIN_FILE, environment, launcher
from tests.support.warm import WarmStart, spare_the_compiler

START_LIMIT_S = 120.0


class LaunchedStart(WarmStart):
    """A ``WarmStart`` whose training runs start under the launcher; its ``wait`` gives the launcher's exit code."""

    is_launched = True

    def __init__(self) -> None:
        self._jobs: dict[int, subprocess.Popen] = {}

    def start(self, arguments: list[str], *, ranks: int = 1, port: int | None = None, **options: Any) -> list[int]:
        """As in ``WarmStart``, which starts what is no training run, runs out of memory, or runs on other nodes."""
        is_bare = port is None or options.get("shortages") or options.get("nodes")
        if is_bare or options.get("program", "hebrew_asr.train") != "hebrew_asr.train":
            return super().start(arguments, ranks=ranks, port=port, **options)
        script = Path(__file__) if options.get("compiled") else TRAIN_FILE
        line = [*launcher(ranks, port), str(script), *arguments]
        variables = {**environment(), **dict(options.get("variables", ()))}
        with options["output"].open("a") as output, (options.get("errors") or options["output"]).open("a") as errors:
            job = subprocess.Popen(line, env=variables, cwd=ROOT, stdout=output, stderr=errors)
        deadline = time.monotonic() + START_LIMIT_S
        while len(found := _ranks_of(job)) < ranks and job.poll() is None:
            assert time.monotonic() < deadline, "the launcher started no ranks"
            time.sleep(0.004)
        pids = [found.get(rank, job.pid) for rank in range(ranks)]  # a run may end before it is found
        self._jobs |= dict.fromkeys(pids, job)
        return pids

    def wait(self, pid: int) -> int:
        """Of the launcher: the exit code of the first rank that it saw fail."""
        if pid not in self._jobs:
            return super().wait(pid)
        code = self._jobs[pid].wait()
        return code - 256 if code > 128 else code


def _ranks_of(job: subprocess.Popen) -> dict[int, int]:
    """Process ids by rank; not of their loader processes, which look alike."""
    found = {}
    try:
        for process in psutil.Process(job.pid).children(recursive=True):
            line = process.cmdline()
            local = [part for part in line if part.startswith("--local_rank=")]
            if local and process.parent().cmdline() != line:
                found[int(local[0].split("=")[1])] = process.pid
    except (psutil.NoSuchProcess, AttributeError):  # one that ends while it is looked at
        pass
    return found


def main() -> int:
    """What a rank runs whose profile compiles."""
    import hebrew_asr.train

    spare_the_compiler()
    return hebrew_asr.train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
