"""What ``hebrew-asr train`` leaves with goes by what its ranks say, whatever the launcher's own code is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hebrew_asr.errors import EnvironmentProblem, Preempted
from hebrew_asr.launching.command import Launch, run, stopped_at_once
from tests.support.tiny_task import ROOT, environment


class Shell(Launch):
    """Two ranks and their launcher, as a line of bash: ``rank N CODE`` is one that leaves and says its code,
    ``follows N`` one that leaves because another is gone, ``joins N`` one that is there.
    """

    def line(self) -> list[str]:
        imports = "import sys; from hebrew_asr.launching.job import Job; Job.of_this_rank()"
        python = f"PYTHONPATH={ROOT} {sys.executable} -c"
        said = f'rank() {{ RANK="$1" {python} "{imports}.report(int(sys.argv[1]))" "$2"; }}; '
        said += f'follows() {{ RANK="$1" {python} "{imports}.follow()"; }}; '
        said += f'joins() {{ RANK="$1" {python} "{imports}.join()"; }}; '
        return ["bash", "-c", said + self.arguments[0]]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("rank 0 0; rank 1 0; exit 0", 0),
        ("rank 0 0; rank 1 0; exit 1", 0),
        ("rank 0 75; rank 1 75; exit 1", 75),
        ("rank 0 0; rank 1 6; exit 0", 6),
        ("rank 1 75; rank 0 5; exit 1", 5),
        ("rank 1 3; kill -KILL $$", 3),
        ("joins 0; rank 0 75; exit 1", 75),  # stopped before the other was there
    ],
)
def test_the_first_rank_that_failed_gives_the_code(script, code):
    assert run(Shell(Path("train.py"), [script], ["0", "1"], on_gpus=False)) == code


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("rank 0 0; exit 0", r"rank 1 ended without a word \(the launcher's code is 0\)"),
        ("follows 0; exit 6", r"rank 1 ended without a word \(the launcher's code is 6\)"),
        ("joins 0; joins 1; rank 0 75; exit 1", r"rank 1 ended without a word"),  # rank 0 had SIGTERM for that
        ("kill -KILL $$", r"rank 0, 1 ended without a word \(the launcher's code is -9\)"),
    ],
)
def test_a_rank_that_says_nothing_is_no_success(script, told):
    with pytest.raises(EnvironmentProblem, match=told):
        run(Shell(Path("train.py"), [script], ["0", "1"], on_gpus=False))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_before_there_is_a_rank_is_a_stop(tmp_path, number):
    """Data may be prepared for hours then; launchers go by the code."""
    line = [sys.executable, "-m", "hebrew_asr.cli", "train", "--ds", "cpu", "--run", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, env=environment(), cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None and "checking recipe" in process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(number)
        said = process.communicate(timeout=60)[0]
    assert (process.returncode, said.count("\n")) == (Preempted.exit_code, 1), said
    assert said.startswith(f"stopped ({number.name}): there is nothing to save")


class Slow:
    """Waits while it is thrown away, where Python ignores whatever is raised."""

    def __del__(self):
        for _ in range(100):
            time.sleep(0.01)


@pytest.mark.parametrize("goes_on_s", [0.0, 30.0])
def test_a_stop_that_python_ignores_is_heard_again(goes_on_s):
    sent = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    started = time.monotonic()
    with pytest.raises(Preempted, match="SIGTERM"), stopped_at_once():
        slow = Slow()
        sent.start()
        del slow
        time.sleep(goes_on_s)
    assert time.monotonic() - started < 20
    time.sleep(0.3)  # nothing comes later
