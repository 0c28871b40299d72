"""Processes that start in a moment: forked from one that has imported everything already, otherwise as usual.

Reads one JSON object a line from stdin and answers with one on stdout: the options of ``WarmStart.start`` start
processes, for their ids; ``{"wait": pid}`` waits, for an exit code or a negative signal.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.support.nodes import Node
from tests.support.tiny_task import ROOT, environment, make_task, train_arguments


class WarmStart:
    """Starts processes in quick succession; they and what they do are real."""

    is_launched = False
    """Whether ``wait`` gives the launcher's exit code instead of each rank's own."""

    def __enter__(self) -> WarmStart:
        line = [sys.executable, "-m", "tests.support.warm"]
        self._parent = subprocess.Popen(
            line,
            env=environment(),
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._parent.pid, signal.SIGKILL)  # with what it started: a rank that hangs would keep its port
        self._parent.communicate()

    def start(
        self,
        arguments: list[str],
        *,
        ranks: int = 1,
        port: int | None = None,
        output: Path,
        errors: Path | None = None,
        program: str = "hebrew_asr.train",
        shortages: Any = (),
        compiled: bool = False,
        variables: Any = (),
        nodes: Sequence[Node] = (),
    ) -> list[int]:
        """Process ids by rank, which start in this process's folder; those of an earlier start are killed.

        What they print goes to ``output``.

        Args:
            port: where the ranks meet; without one a single process starts, as from a shell.
            errors: a file of its own for what goes to stderr.
            program: the module whose ``main(arguments)`` runs.
            shortages: of memory, see ``small_memory``.
            nodes: where each rank runs, the first of which they meet on; this machine without them.
            compiled: the profile compiles: give attention a form that a CPU's graph can hold, and spare the C++.
            variables: of the environment, by name, beside those of this process's start.
        """
        request = {"program": program, "arguments": arguments, "ranks": ranks, "port": port, "output": str(output)}
        request["folder"] = str(Path.cwd())
        request |= {"errors": str(errors or output), "shortages": shortages, "compiled": compiled}
        request |= {"variables": dict(variables)}
        request |= {"nodes": [asdict(node) for node in nodes]}
        return self._ask(request)

    def wait(self, pid: int) -> int:
        """Exit code of a process that ends, or is about to."""
        return self._ask({"wait": pid})

    def run(self, arguments: list[str], **options: Any) -> list[int]:
        """Exit codes by rank, when all have ended; options of ``start``."""
        return [self.wait(pid) for pid in self.start(arguments, **options)]

    def finish(self, arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """``run`` as one finished process: the first exit code that is not 0, and what all ranks printed.

        Where ranks left with different codes, the last line of stderr says with which: a rank that was killed says
        nothing itself.
        """
        with TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            codes = self.run(arguments, output=stdout, errors=stderr, **options)
            code = next(filter(None, codes), 0)
            told = stderr.read_text() + (f"exit codes by rank: {codes}\n" if len(set(codes)) > 1 else "")
            return subprocess.CompletedProcess(arguments, code, stdout.read_text(), told)

    def _ask(self, request: dict) -> Any:
        try:
            self._parent.stdin.write(json.dumps(request) + "\n")
            self._parent.stdin.flush()
            return json.loads(self._parent.stdout.readline())
        except BaseException:  # the time limit of a test too, whose answer the next one must not get
            self.__exit__()
            self.__enter__()
            raise


def has_ended(pids: list[int]) -> bool:
    """Whether one of the started processes has."""
    try:
        return any(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)
    except psutil.NoSuchProcess:
        return True


def main() -> None:
    gc.disable()
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.ops.op_builder.all_ops
    import deepspeed.runtime.zero.muon.muon_optimizer
    import deepspeed.utils.pin_memory  # noqa: F401 (each of them is imported where an engine is built)
    import pandas  # noqa: F401 (Arrow imports it for its first array)
    import torch.utils.cpp_extension  # noqa: F401

    import hebrew_asr.train
    import hebrew_asr.training.loop
    import hebrew_asr.training.rank

    hebrew_asr.training.rank.FIRST_SPEAKS_S = 0.0  # no launcher here kills the other ranks when one leaves
    _start_once()
    gc.collect()
    gc.enable()
    gc.freeze()  # DeepSpeed collects garbage some thirty times an engine, in half a second where it walks the imports
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            running.discard(request["wait"])
        else:
            for pid in running:  # of a test that failed meanwhile
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            answer = [_fork(rank, **request) for rank in range(request["ranks"])]
            running = set(answer)
        print(json.dumps(answer), flush=True)


def _start_once() -> None:
    """Go as far as a rank goes by itself: what its libraries make and keep at their first call takes half a second."""
    from hebrew_asr.config.options import parse_options
    from hebrew_asr.training.arguments import TrainArguments
    from hebrew_asr.training.check import check
    from hebrew_asr.training.setup import load_model, load_tokenizer

    with TemporaryDirectory() as folder:
        task = make_task(Path(folder), train_clips=8)
        options = train_arguments(task, Path(folder, "run"))
        recipe = check(parse_options(TrainArguments, "train.py", options)).recipe
        load_tokenizer(recipe.model.path)
        load_model(recipe.model)


def _fork(
    rank: int,
    *,
    program: str,
    folder: str,
    arguments: list[str],
    ranks: int,
    port: int | None,
    output: str,
    errors: str,
    shortages: list[dict],
    compiled: bool,
    variables: dict[str, str],
    nodes: list[dict],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.chdir(folder)
    if port is not None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        if nodes:
            Node(**nodes[rank]).enter()
            place |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": nodes[0]["address"]}
        os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(variables)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    code = 1
    try:
        from tests.support.small_memory import run_short

        run_short([shortage for shortage in shortages if rank in shortage["ranks"]])
        if compiled:
            spare_the_compiler()
        code = importlib.import_module(program).main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def spare_the_compiler() -> None:
    """Give packed attention a form that a CPU's graph can hold, and trace forward alone: C++ takes minutes to make."""
    from hebrew_asr.passes import packed
    from hebrew_asr.passes.compiled import CompiledASR
    from tests.support.attention import dense_attention

    packed.segment_attention = dense_attention
    CompiledASR.__init__.__kwdefaults__["backend"] = "eager"


if __name__ == "__main__":
    main()
