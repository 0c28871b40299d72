"""All the ways in which people and machines end a run, from outside: from a terminal, by a scheduler, by accident.

One run, of the README's command on two gloo ranks, is ended in each way and resumed. Each time its ranks save and
leave, nothing is left running, and in the end it equals a run that was never disturbed, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hebrew_asr.checkpoints.store import find_checkpoints
from hebrew_asr.errors import STOP_SIGNALS
from hebrew_asr.launching import processes
from hebrew_asr.training.arguments import lock_of
from tests.support.disks import fill, small_disk
from tests.support.long_run import LONG, STEPS, ends_like, saved_step
from tests.support.terminal import CTRL_C, Terminal, processes_of, screen, wait_until_gone
from tests.support.tiny_task import (
    ROOT,
    environment,
    free_port,
    last_step,
    train_arguments,
    wait_for,
)
from tests.support.warm import has_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LEFT_LIMIT_S = 40.0
BIN = Path(sys.executable).parent


@pytest.fixture
def in_full(request) -> None:
    """For a way of ending that is close to another one: a start by the launcher takes half a minute of a processor."""
    if not request.config.getoption("--real-launcher"):
        pytest.skip("runs with --real-launcher")


@pytest.fixture(scope="module")
def run(long_run, tmp_path_factory) -> Path:
    """The run that is ended and resumed."""
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture(autouse=True)
def nothing_left(run):
    """What a test that failed has left running must not go on with the run of the next one."""
    yield
    for process in processes_of(str(run)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class Started:
    """A start of the run in a terminal, by ``deepspeed`` or by ``hebrew-asr train``."""

    def __init__(self, task: Path, run: Path, *, shorthand: bool = False, **variables: str):
        """``variables``: of its environment."""
        self.run = run
        options = train_arguments(task, run, *LONG, resume="auto")
        if shorthand:
            line = [str(BIN / "python"), "-m", "hebrew_asr.cli", "train", "--num-gpus", "2", *options]
        else:
            place = ["--num_gpus", "2", "--master_port", str(free_port())]
            line = [str(BIN / "deepspeed"), *place, "hebrew_asr/train.py", *options]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.before = last_step(run)
        self.terminal = Terminal(line, environment={**environment(), "PATH": path, **variables}, folder=ROOT)

    def processes(self, part: str = "") -> list[psutil.Process]:
        """The job's, launchers included; only those with an argument that contains ``part``."""
        found = processes_of(str(self.run))
        return [process for process in found if any(part in word for word in process.info["cmdline"])]

    def wait_for_steps(self) -> None:
        """Until it has trained two steps more than were trained before."""
        self.wait_for(lambda: last_step(self.run) >= self.before + 2)

    def wait_for(self, moment: Callable[[], object]) -> None:
        wait_for(moment, lambda: self.terminal.process.poll() is not None and self.terminal.text)

    def ended(self, *, saved: bool = True) -> str:
        """What was printed, once nothing runs any more; the state of the last step is saved."""
        wait_until_gone(str(self.run), LEFT_LIMIT_S)
        self.terminal.process.wait(timeout=5)
        self.terminal.drain()
        text = self.terminal.text
        assert "error:" not in text and 'hebrew_asr/train.py", line' not in text, text
        if saved:
            step = saved_step(self.run)
            assert step > self.before and step == last_step(self.run), text
        assert not list((self.run / "checkpoints").glob(".*"))
        return text


def said(run: Path) -> str:
    return f"stopped after step {saved_step(run)}, state saved in {run}; go on with --resume auto"


def test_ctrl_c_while_the_ranks_start(long_task, run):
    started = Started(long_task, run)
    started.wait_for(lambda: len(started.processes("--local_rank")) == 2)
    ranks = started.processes("--local_rank")
    started.wait_for(lambda: all(catches(rank.pid, signal.SIGTERM) for rank in ranks))
    started.terminal.type(CTRL_C)
    text = started.ended(saved=False)
    assert text.count("there is nothing to save") == 1, text
    assert not find_checkpoints(run / "checkpoints")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_ctrl_c(long_task, run, warm):
    started = Started(long_task, run)
    started.wait_for_steps()
    refused = warm.finish(
        ["train", *train_arguments(long_task, run, *LONG, resume="auto"), "--num-gpus", "1"], program="hebrew_asr.cli"
    )
    first = min(started.processes("--local_rank=0"), key=lambda process: process.create_time())
    assert refused.returncode == 2
    assert f"in use by {first.cmdline()[0]} -u hebrew_asr/train.py (pid {first.pid} on " in refused.stderr
    started.terminal.type(CTRL_C)
    text = started.ended()
    assert text.count(said(run)) == 1
    shown = [line for line in screen(text) if line]
    *_, view = (place for place, line in enumerate(shown) if "% phase " in line and f" of {STEPS} " in line)
    assert [line.split()[0] for line in shown[view + 1 : view + 4]] == ["loss", "speed", "rates"]
    assert said(run) in "".join(shown[view:]), "below the view, whole, and not written over"


def test_a_connection_that_drops(long_task, run):
    started = Started(long_task, run)
    started.wait_for_steps()
    started.terminal.hang_up()
    started.ended()


def test_sigterm_to_the_launcher(long_task, run):
    started = Started(long_task, run)
    started.wait_for_steps()
    started.terminal.process.terminate()
    assert started.ended().count(said(run)) == 1


def test_sigkill_to_the_launchers_second_half(long_task, run, in_full):
    started = Started(long_task, run)
    started.wait_for_steps()
    (launch,) = started.processes("deepspeed.launcher.launch")
    launch.kill()
    assert started.ended().count(said(run)) == 1


def test_sigterm_to_every_process(long_task, run):
    """As Slurm and ``docker stop`` do."""
    started = Started(long_task, run)
    started.wait_for_steps()
    for process in started.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # the launchers end what is below them
            process.terminate()
    assert started.ended().count(said(run)) == 1


def test_the_shorthand_and_ctrl_c_in_haste(long_task, run, tmp_path):
    """The exit code is the ranks', and nobody else says a word, though the disk of temporary files has filled up."""
    with small_disk(tmp_path / "temporary", "64k") as disk:
        started = Started(long_task, run, shorthand=True, TMPDIR=str(disk))
        started.wait_for(lambda: started.processes("deepspeed.launcher.launch"))
        fill(disk)
        started.wait_for_steps()
        for _ in range(3):
            started.terminal.type(CTRL_C)
            time.sleep(0.2)
        text = started.ended().replace("^C", "")  # as the terminal echoes each
    assert started.terminal.process.returncode == 75
    assert text.rstrip().endswith(said(run)) and "launch.py" not in text, text[-2000:]


def test_the_shorthand_is_stopped_before_it_has_ranks(long_task, tmp_path):
    started = Started(long_task, tmp_path / "run", shorthand=True)
    started.wait_for(lambda: started.processes("deepspeed.launcher.launch"))
    started.terminal.process.terminate()
    assert started.ended(saved=False).count("there is nothing to save") == 1
    assert started.terminal.process.returncode == 75
    assert not (tmp_path / "run").exists()


def test_the_shorthand_is_killed(long_task, run):
    started = Started(long_task, run, shorthand=True)
    started.wait_for_steps()
    started.terminal.process.kill()
    assert started.ended().count(said(run)) == 1


def test_sighup_to_the_shorthand(long_task, run, in_full):
    started = Started(long_task, run, shorthand=True)
    started.wait_for_steps()
    started.terminal.process.send_signal(signal.SIGHUP)
    assert started.ended().count(said(run)) == 1
    assert started.terminal.process.returncode == 75


def test_bare_ranks_and_every_kind_of_signal(long_task, run, warm, tmp_path):
    """As under srun: no launcher, and each process of the step gets the signals, loaders included."""
    before, output = last_step(run), tmp_path / "log"
    arguments = train_arguments(long_task, run, *LONG, resume="auto")
    pids = warm.start(arguments, ranks=2, port=free_port(), output=output)
    wait_for(lambda: last_step(run) >= before + 2, lambda: has_ended(pids) and output.read_text())
    everybody = [process for pid in pids for process in (*psutil.Process(pid).children(), psutil.Process(pid))]
    assert len(everybody) == 4, "two ranks with a loader each"
    for number in (*reversed(STOP_SIGNALS), signal.SIGINT):
        for process in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):  # the first signals may have ended it by now
                process.send_signal(number)
    assert [warm.wait(pid) for pid in pids] == [75, 75], output.read_text()
    assert output.read_text().count(said(run)) == 1 and "error" not in output.read_text()
    _, left = psutil.wait_procs(everybody, timeout=10)  # a loader ends by itself, a moment after its rank
    assert all(processes.has_ended(process) for process in left)
    assert saved_step(run) == last_step(run) > before


def test_a_signal_to_another_rank_alone(long_task, run, warm, tmp_path):
    """All are asked as soon as they know, so the lock says that it will be free: the next start waits for the state."""
    before, output, seen = last_step(run), tmp_path / "log", False
    pids = warm.start(train_arguments(long_task, run, *LONG, resume="auto"), ranks=2, port=free_port(), output=output)
    wait_for(lambda: last_step(run) >= before + 2, lambda: has_ended(pids) and output.read_text())
    assert lock_of(run).holder()["leaves"] is False
    os.kill(pids[1], signal.SIGTERM)
    while not has_ended(pids[:1]):
        seen = seen or bool((lock_of(run).holder() or {}).get("leaves"))
        time.sleep(0.005)
    assert [warm.wait(pid) for pid in pids] == [75, 75], output.read_text()
    assert seen and output.read_text().count(said(run)) == 1


def test_in_the_end_nothing_can_be_told(long_task, run, long_run, warm, tmp_path):
    """And a finished run says so, without building anything."""
    arguments = train_arguments(long_task, run, *LONG, resume="auto")
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr
    ends_like(run, long_run)
    again = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hebrew_asr.cli", "train", *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{run} is a finished run: {STEPS} steps, model in {run / 'final'}\n"
    loaded = set(re.findall(r"\| +(\S+)$", again.stderr, re.MULTILINE))
    assert "hebrew_asr.errors" in loaded and not loaded & {"torch", "deepspeed"}
    (run / "final").rename(run / "moved")  # then it is written again
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr
    ends_like(run, long_run)
