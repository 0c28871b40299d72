"""A request to stop, by real signals to a real process that trains nothing; how it ends and what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hebrew_asr.errors import STOP_SIGNALS, Preempted
from hebrew_asr.launching.stopping import IMPATIENT

ROOT = Path(__file__).parents[2]
_TRAINER = """
import io, sys, time
from hebrew_asr import errors
from hebrew_asr.launching import stopping
from hebrew_asr.streams import outlive_the_terminal
stopping.GRACE_S = stopping.AGREE_S = 0.5
stopping._LOOK_S = 0.1
if "hangs" in sys.argv:
    stopping._SLOW_S = 0.5
if "flushed" in sys.argv:
    errors.TERMINAL_FLUSH_S = 0.7
outlive_the_terminal()
request = stopping.StopRequest()
request.install()
if "met" in sys.argv:
    request.met()
request.unsaved = "unsaved" in sys.argv
if "parses" in sys.argv:
    sys.stderr = io.StringIO()
print("ready", flush=True)
while request.reason is None or "hangs" in sys.argv:
    time.sleep(0.05)
time.sleep(0.3)  # saving
print("saved,", request.reason, flush=True)
sys.exit(75)
"""
_LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[sys.argv.index('--') + 1:]]))"
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the trainer in a session of its own, under a process that looks like ``under`` where that is given."""
    started = []

    def begin(
        *options: str, under: str | None = None, ignored: int | None = None, stderr: int = subprocess.STDOUT
    ) -> subprocess.Popen:
        above = [sys.executable, "-c", _LAUNCHER, under, "--"] if under else [sys.executable]
        process = subprocess.Popen(
            [*above, "-c", _TRAINER, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: _defaults(ignored),
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _defaults(ignored: int | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_the_ranks_meet_it_leaves_at_once_even_from_a_library_that_hangs(start, number):
    process = start("hangs")
    asked = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=10)[0]
    assert (process.returncode, said.count("nothing to save")) == (Preempted.exit_code, 1)
    assert time.monotonic() - asked < 8


def test_what_it_says_is_not_collected_with_the_words_of_a_parser(start):
    process = start("hangs", "parses")
    process.send_signal(signal.SIGINT)
    assert "nothing to save" in process.communicate(timeout=10)[0]


def test_it_answers_when_the_terminal_has_thrown_its_output_away(start):
    ours, terminal = os.openpty()
    process = start("hangs", "flushed", stderr=terminal)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert b"nothing to save" in os.read(ours, 1000)
    assert time.monotonic() - asked >= 0.7
    os.close(ours), os.close(terminal)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "errors.Preempted('x')"])
def test_where_there_is_no_terminal_it_answers_at_once(start, error):
    """Neither the thread nor the end of a command waits for what no file throws away."""
    process = start("hangs", "flushed")
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "nothing to save" in process.stdout.readline()
    assert time.monotonic() - asked < 0.7
    timed = (
        "import time; from hebrew_asr import errors; errors.TERMINAL_FLUSH_S = 5.0\n"
        f"def run(): raise {error}\n"
        "asked = time.monotonic(); errors.exit_code_of(run); print(time.monotonic() - asked)"
    )
    done = subprocess.run([sys.executable, "-c", timed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr and float(done.stdout) < 2


def test_where_nothing_would_be_lost_the_ranks_get_a_moment_to_agree(start):
    process = start("met")
    process.send_signal(signal.SIGTERM)
    assert "saved, SIGTERM" in process.communicate(timeout=10)[0]
    process = start("met", "hangs")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=10)[0]
    assert "nothing to save" in said and "before a step was trained" not in said, "it may be in a change of phase"
    assert process.returncode == Preempted.exit_code


_WAITS_FOR_LOADERS = """
import multiprocessing, sys, time
from multiprocessing.connection import wait
from hebrew_asr import errors
from hebrew_asr.engine import dist  # as whoever trains has
from hebrew_asr.training.rank import run_rank

class Slow(multiprocessing.get_context("fork").Process):
    kill = lambda self: None  # as one that closes many files

def work(argv, stop):
    loaders = [kind(target=time.sleep, args=(60,)) for kind in (Slow, multiprocessing.get_context("fork").Process)]
    for loader in loaders:
        loader.start()
    print(loaders[0].pid, flush=True)
    wait([loader.sentinel for loader in loaders])
    raise errors.EnvironmentProblem("a loader was killed") if argv else RuntimeError("a worker was killed")

errors.exit_process(run_rank(work, [one for one in sys.argv if one == "ours"], resumes=False))
"""


@pytest.mark.parametrize("kind", ["ours", "other"])
def test_a_rank_that_leaves_at_once_does_not_take_its_own_loaders_end_for_a_fault(kind):
    line = [sys.executable, "-c", _WAITS_FOR_LOADERS, kind]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        slow = psutil.Process(int(process.stdout.readline()))
        process.terminate()
        code = process.wait(timeout=20)
        slow.kill()
        said = process.stdout.read()
    assert (code, said) == (Preempted.exit_code, "stopped (SIGTERM): nothing is kept of a measurement\n")


def test_all_kinds_at_once_are_one_request(start):
    process = start("met", "unsaved")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    said = process.communicate(timeout=10)[0]
    assert process.returncode == Preempted.exit_code
    assert said.startswith("saved, ") and said.count("\n") == 1


def test_only_a_later_ctrl_c_is_impatience_and_a_slow_stop_says_what_it_waits_for(start):
    process = start("met", "unsaved", "hangs")
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None and process.stdout.readline() == "asked to stop (Ctrl-C): stopping\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=10)[0]
    assert process.returncode == IMPATIENT
    assert "left at once" in said and "since the last checkpoint are lost" in said


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(start):
    process = start("met", "unsaved", ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "saved, SIGTERM" in process.communicate(timeout=10)[0]


@pytest.mark.parametrize(
    ("under", "stops"),
    [
        ("deepspeed.launcher.launch", True),
        ("/usr/bin/torchrun", True),
        ("bash", False),  # as under nohup
    ],
)
def test_a_rank_whose_launcher_is_gone_stops_by_itself(start, under, stops):
    launcher = start("met", "unsaved", under=under)
    (rank,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    if stops:
        assert f"the launcher (pid {launcher.pid}) is gone" in launcher.communicate(timeout=10)[0]
    else:
        with pytest.raises(psutil.TimeoutExpired):
            rank.wait(timeout=2.5)


@pytest.mark.parametrize(
    ("under", "patience_s"),
    [("deepspeed.launcher.launch", "30.0"), ("/usr/bin/torchrun", "30.0"), ("hebrew-asr", "None"), ("bash", "None")],
)
def test_a_rank_knows_how_long_its_launcher_waits_for_it(under, patience_s):
    rank = "from hebrew_asr.launching.processes import Launchers; print(Launchers().patience_s)"
    line = [sys.executable, "-c", _LAUNCHER, under, "--", "-c", rank]
    assert subprocess.check_output(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True).strip() == patience_s


def test_a_lost_terminal_ends_nobody(tmp_path):
    script = (
        "import os, sys, time; from hebrew_asr.streams import outlive_the_terminal; outlive_the_terminal();"
        "print('first'); sys.stdin.read(); print('lost'); print('lost too', file=sys.stderr, flush=True);"
        "open(sys.argv[1], 'w').write('went on')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "told")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    assert (tmp_path / "told").read_text() == "went on"
