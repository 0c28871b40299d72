"""Starts ranks by DeepSpeed's ``launch.py``, passes stops on to them, and returns the exit code that they give."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hebrew_asr.errors import STOP_SIGNALS, EnvironmentProblem, Preempted, heard_again, signal_of
from hebrew_asr.launching.gpus import VISIBLE, visible_gpus
from hebrew_asr.launching.job import Told
from hebrew_asr.launching.place import collective_timeout_s
from hebrew_asr.launching.processes import JOB_VARIABLE, free_port, has_ended, process_of
from hebrew_asr.launching.stopping import NAMES, nothing_to_save

_PACE_S = 0.1
_LEAVE_S = 40.0
"""Seconds for launchers to end after a stop before any rank was there; launch.py waits 30 s for its children."""


def program_line() -> str:
    """How a shell with no environment activated starts ``hebrew-asr``, from any folder."""
    script = Path(sys.executable).parent / "hebrew-asr"
    if script.is_file():
        return shlex.quote(str(script))
    root = Path(__file__).parents[2]
    return f"PYTHONPATH={shlex.quote(str(root))} {shlex.quote(sys.executable)} -m hebrew_asr.cli"


def next_commands(run: Path, audio: str) -> str:
    """What to do with a finished run, a line for each, as any shell takes it in any folder; of ``audio``, or any
    if that is ''."""
    program, model = program_line(), shlex.quote(str(run.resolve()))
    commands = [
        f"transcribe --model {model} {shlex.quote(audio) if audio else 'AUDIO'}",
        f"serve --model {model}",
        f"report {model}",
        f"export {model} --out {shlex.quote(f'{run.resolve()}-model')}",
    ]
    return "\n".join(["next, in any shell:", *(f"{program} {command}" for command in commands)])


@dataclass(frozen=True)
class Launch:
    """A command of DeepSpeed's ``launcher/launch.py``, which starts the ranks of one machine.

    Its front end, ``deepspeed``, is not used: it sorts the GPUs, takes 0..N-1 where it is told how many, and cannot
    read UUIDs.
    """

    script: Path
    arguments: list[str]
    devices: list[str]
    """What each rank gets as its GPU, as ``CUDA_VISIBLE_DEVICES`` names it; on a CPU the ranks' numbers."""
    on_gpus: bool
    port: int | None = None
    """Where the ranks meet; one that is free unless given."""
    resumes: bool = True
    """Whether the next start goes on from what this one saves."""

    @property
    def num_ranks(self) -> int:
        """One on each device."""
        return len(self.devices)

    def line(self) -> list[str]:
        """The launcher's command line."""
        # At its usual level it would report a rank that was stopped as an error.
        launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--log_level", "critical"]
        world = base64.urlsafe_b64encode(json.dumps({"localhost": self.devices}).encode()).decode()
        place = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={self.port or free_port()}"]
        return [*launcher, *place, str(self.script), *self.arguments]

    def environment(self) -> dict[str, str]:
        """Of the launcher, which looks for its helpers on PATH: they lie beside this interpreter."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**({} if self.on_gpus else {"DS_ACCELERATOR": "cpu"}), **os.environ, "PATH": path}


def launch_for(
    script: Path, arguments: list[str], num_ranks: int | None, port: int | None, *, on_gpus: bool, usual_ranks: int
) -> Launch:
    """``num_ranks`` of them if given; else one on each visible GPU if ``on_gpus``; else ``usual_ranks``.

    Raises:
        EnvironmentProblem: ``CUDA_VISIBLE_DEVICES`` names what cannot be used, or fewer GPUs than ``num_ranks``;
            ``NCCL_TIMEOUT`` is no time.
    """
    collective_timeout_s()
    import torch

    visible = visible_gpus(torch.cuda.device_count()) if on_gpus else []
    ranks = num_ranks or len(visible) or usual_ranks
    if visible and ranks > len(visible):
        limit = f", which {VISIBLE} allows" if VISIBLE in os.environ else " on this machine"
        raise EnvironmentProblem(f"--num-gpus {ranks}: there are {len(visible)} GPUs{limit}")
    # Where there is no GPU, `check_hardware` says so, beside what else is wrong.
    devices = visible[:ranks] or [str(rank) for rank in range(ranks)]
    return Launch(script, arguments, devices, on_gpus, port)


def run(launch: Launch) -> int:
    """Run it to its end; returns the exit code that the ranks gave.

    Signals that ask for a stop are passed on to the ranks, which save and leave by themselves, however long that takes.
    The launcher hears nothing of them: it would kill the ranks after 30 s.

    Raises:
        Preempted: stopped before any rank had begun.
        EnvironmentProblem: a rank ended without giving its exit code, as after SIGKILL.
    """
    with tempfile.TemporaryDirectory(prefix="hebrew-asr-job-") as folder:
        told = Told(Path(folder))
        environment = {**launch.environment(), JOB_VARIABLE: f"{os.getpid()}:{folder}"}
        signals = _Signals()
        with _caught(signals.hear):
            process = subprocess.Popen(launch.line(), env=environment, start_new_session=True)
            while process.poll() is None or any(not has_ended(process_of(pid)) for pid in told.pids().values()):
                signals.pass_on(process, told)
                time.sleep(_PACE_S)
            if signals.heard and not told.pids():
                _see_it_end(process.pid)
        return _judge(told, launch, was_asked=bool(signals.heard), code=process.returncode)


@contextlib.contextmanager
def stopped_at_once(*, resumes: bool = True) -> Iterator[None]:
    """What comes before the ranks ends at once by any signal that asks for a stop. ``resumes``: as of ``Launch``.

    Raises:
        Preempted: there was one.
    """
    heard = list[int]()

    def interrupt(number: int, _: object) -> NoReturn:
        heard.append(number)
        raise KeyboardInterrupt(heard[0])  # which nobody takes for a fault of a file

    try:
        with _caught(interrupt), heard_again():
            yield
            if heard:
                interrupt(heard[0], None)
    except KeyboardInterrupt as asked:
        raise Preempted(nothing_to_save(NAMES[signal_of(asked)], resumes=resumes)) from None


@contextlib.contextmanager
def _caught(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Signals that ask for a stop are this handler's, but those that were ignored at the start (nohup)."""
    caught = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in caught}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class _Signals:
    """Signals that ask for a stop, kept for the ranks."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self._sent: dict[int, int] = {}

    def hear(self, number: int, _: object) -> None:
        """Keep it."""
        self.heard.append(number)

    def pass_on(self, process: subprocess.Popen, told: Told) -> None:
        """Send each rank the signals that it has not got yet; while there is no rank, end the launcher."""
        pids = told.pids().values()
        for pid in pids:
            for number in self.heard[self._sent.get(pid, 0) :]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._sent[pid] = len(self.heard)
        if self.heard and not pids and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def _see_it_end(group: int) -> None:
    """Wait for what is left of the launcher's processes, and kill it when it takes too long."""
    deadline = time.monotonic() + _LEAVE_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(_PACE_S)
        os.killpg(group, signal.SIGKILL)


def _judge(told: Told, launch: Launch, *, was_asked: bool, code: int) -> int:
    """The launcher's own code is 1 whatever a stopped rank says."""
    codes = told.codes()
    known = codes.keys() | told.followers()
    failed = next((codes[rank] for rank in sorted(codes) if codes[rank]), None)
    # Where a rank dies the launcher sends the others SIGTERM, which some take for a stop.
    is_death = failed == Preempted.exit_code and not was_asked and bool(told.pids().keys() - known)
    if failed is not None and not is_death:
        return failed
    if len(codes) == launch.num_ranks:
        return 0
    if was_asked and not told.pids():
        raise Preempted(nothing_to_save("asked before the ranks were there", resumes=launch.resumes))
    missing = ", ".join(str(rank) for rank in range(launch.num_ranks) if rank not in known)
    raise EnvironmentProblem(
        f"rank {missing} ended without a word (the launcher's code is {code}): killed, perhaps for want of memory; "
        f"dmesg may say so{'. --resume auto goes on from the last checkpoint' if launch.resumes else ''}"
    )
