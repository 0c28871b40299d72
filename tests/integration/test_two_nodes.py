"""Two machines, each with a network of its own: trained on both, one killed, resumed on one, finished on both.

The first start is DeepSpeed's own, by hand on each node; the others are bare ranks, as ``srun`` starts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.long_run import LONG, STEPS, saved_step
from tests.support.nodes import Node, NoNamespaces, two_nodes
from tests.support.terminal import processes_of, wait_until_gone
from tests.support.tiny_task import ROOT, environment, events, free_port, train_arguments, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(two_nodes())
        except NoNamespaces as reason:
            pytest.skip(f"no network namespaces here: {reason}")


def launcher_on(node: Node, number: int, first: Node, hostfile: Path, arguments: list[str], output: Path):
    """DeepSpeed's launcher for one node of two, as a person starts it on each."""
    place = ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number), "--master_addr", first.address]
    line = [sys.executable, "-m", "deepspeed.launcher.runner", *place, "--master_port", "29533"]
    with output.open("ab") as stream:
        return subprocess.Popen(
            node.command([*line, "hebrew_asr/train.py", *arguments]),
            env=environment(), cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip


def test_trained_on_two_killed_resumed_on_one_finished_on_two(long_task, long_run, warm, nodes, tmp_path):
    run, output, hostfile = tmp_path / "run", tmp_path / "log", tmp_path / "hostfile"
    hostfile.write_text("one slots=1\ntwo slots=1\n")
    arguments = train_arguments(long_task, run, *LONG, resume="auto")
    started = [launcher_on(node, number, nodes[0], hostfile, arguments, output) for number, node in enumerate(nodes)]
    try:
        wait_for(lambda: saved_step(run) >= 2, lambda: started[0].poll() is not None and output.read_text())
        of_second = psutil.Process(started[1].pid).children(recursive=True)
        for process in of_second:  # the node is gone: nobody there says a word
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_gone(str(run), 60)
    finally:
        for process in processes_of(str(run)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for launcher in started:
            launcher.wait(timeout=30)
    killed_at = saved_step(run)
    assert 2 <= killed_at < STEPS, output.read_text()[-3000:]
    _on_one_for_a_while(warm, [*arguments], run, nodes[0], tmp_path / "one")
    resumed_at = saved_step(run)
    assert killed_at < resumed_at < STEPS
    codes = warm.run(arguments, ranks=2, port=free_port(), nodes=nodes, output=tmp_path / "two")
    assert codes == [0, 0], (tmp_path / "two").read_text()[-3000:]
    losses = [[row["loss"] for row in events(folder, "train")] for folder in (run, long_run)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], abs=1e-6)


def _on_one_for_a_while(warm, arguments: list[str], run: Path, node: Node, output: Path) -> None:
    """Goes on on one node until it has saved more, and is stopped as a scheduler does it."""
    before = saved_step(run)
    (pid,) = warm.start(arguments, port=free_port(), nodes=[node], output=output)
    wait_for(lambda: saved_step(run) > before, lambda: psutil.Process(pid).status() == "zombie" and output.read_text())
    os.kill(pid, signal.SIGTERM)
    assert warm.wait(pid) == 75, output.read_text()[-3000:]
