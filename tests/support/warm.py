"""Ranks that start in a moment: forked from a process that has imported everything already, otherwise as usual.

Reads one JSON object a line from stdin and answers with one on stdout: the options of ``WarmStart.start`` start the
ranks of ``hebrew_asr/train.py``, for their process ids; ``{"wait": pid}`` waits, for an exit code or a negative signal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.support.tiny_task import ROOT, environment


class WarmStart:
    """Starts ranks in quick succession; the processes and what they do are real."""

    def __enter__(self) -> WarmStart:
        line = [sys.executable, "-m", "tests.support.warm"]
        self._parent = subprocess.Popen(
            line, env=environment(), cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.stdin.close()
        self._parent.wait(timeout=60)

    def start(
        self, arguments: list[str], *, ranks: int, port: int, output: Path, shortages: Any = (), compiled: bool = False
    ) -> list[int]:
        """Process ids by rank; what they print goes to ``output``.

        Args:
            shortages: of memory, see ``small_memory``.
            compiled: the profile compiles: give attention a form that a CPU's graph can hold, and spare the C++.
        """
        request = {"arguments": arguments, "ranks": ranks, "port": port, "output": str(output)}
        return self._ask({**request, "shortages": shortages, "compiled": compiled})

    def wait(self, pid: int) -> int:
        """Exit code of a rank that ends, or is about to."""
        return self._ask({"wait": pid})

    def run(self, arguments: list[str], **options: Any) -> list[int]:
        """Exit codes by rank, when all have ended; options of ``start``."""
        return [self.wait(pid) for pid in self.start(arguments, **options)]

    def _ask(self, request: dict) -> Any:
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())


def main() -> None:
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    from transformers import Qwen3ASRForConditionalGeneration  # noqa: F401

    import hebrew_asr.train
    import hebrew_asr.training.loop
    import hebrew_asr.training.setup  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = [_fork(rank, **request) for rank in range(request["ranks"])]
        print(json.dumps(answer), flush=True)


def _fork(
    rank: int, arguments: list[str], ranks: int, port: int, output: str, shortages: list[dict], compiled: bool
) -> int:
    pid = os.fork()
    if pid:
        return pid
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        import hebrew_asr.train
        from hebrew_asr.model import packed
        from hebrew_asr.model.compiled import CompiledASR
        from tests.support.attention import dense_attention
        from tests.support.small_memory import run_short

        run_short([shortage for shortage in shortages if rank in shortage["ranks"]])
        if compiled:
            packed.varlen_attention = dense_attention
            CompiledASR.__init__.__kwdefaults__["backend"] = "aot_eager"
        code = hebrew_asr.train.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
