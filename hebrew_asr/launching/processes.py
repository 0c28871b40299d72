"""Processes: the launchers above this one, which it must not outlive, and how to watch any other.

DeepSpeed's runner.py has no handler for SIGTERM and SIGHUP, and neither it nor launch.py can answer SIGKILL: the ranks
would train on, with nobody to stop them.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing.util
import os
import random
import signal
import socket
import sys
from pathlib import Path

import psutil

from hebrew_asr.errors import EnvironmentProblem

JOB_VARIABLE = "HEBREW_ASR_JOB"
"""``PID:FOLDER`` of the ``hebrew-asr`` process that started this job, where one did."""
_NAMES = {"deepspeed", "torchrun", "hebrew-asr"}
_MODULES = {"deepspeed.launcher.runner", "deepspeed.launcher.launch", "torch.distributed.run", "hebrew_asr.cli"}
_LAUNCH = "deepspeed.launcher.launch"
_KILLERS = {_LAUNCH, "torchrun", "torch.distributed.run"}
_PATIENCE_S = 30.0
"""After which these kill a rank when they were asked to stop themselves (launch.py's ``terminate_process_tree``,
torchrun's ``PContext.close``)."""
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_SOCKET_BYTES = 107  # unix(7): sun_path, without the zero at its end
_PORTS = range(20_000, 32_000)
"""Below those of outgoing connections, from 32,768 on Linux: one of them could take a port before a rank listens."""


class Launchers:
    """The launchers above this process. When one of them ends, this process must end; a shell (nohup) may end."""

    def __init__(self) -> None:
        """Looks at the processes above this one."""
        job = os.environ.get(JOB_VARIABLE)
        starter = int(job.partition(":")[0]) if job else None
        above = _ancestors()
        launchers = [place for place, process in enumerate(above) if process.pid == starter or _is_launcher(process)]
        self._watched = above[: max(launchers, default=-1) + 1]
        self._missing = _already_gone(self._watched, starter)
        kills = any(_words(process) & _KILLERS for process in self._watched)
        self.patience_s = _PATIENCE_S if kills and starter is None else None
        """How long the launcher waits for a rank that it was asked to stop; None where nothing limits it."""

    def gone(self) -> str | None:
        """Which launcher has ended, in words; None while all are running."""
        if self._missing is not None:
            return self._missing
        return next((f"the launcher (pid {process.pid})" for process in self._watched if has_ended(process)), None)


def end_with_the_parent() -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends.

    On other systems a DataLoader worker checks its parent itself, every few seconds while it waits for work (torch).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ancestors() -> list[psutil.Process]:
    """Parents, the nearest first."""
    try:
        return psutil.Process().parents()
    except psutil.Error:  # one ended meanwhile
        return []


def _is_launcher(process: psutil.Process) -> bool:
    return bool(_words(process) & (_MODULES | _NAMES))


def _words(process: psutil.Process) -> set[str]:
    """Of its line, and of what they name as paths."""
    line = _line(process)
    return line | {Path(part).name for part in line}


def _line(process: psutil.Process) -> set[str]:
    """The program and the first arguments: what comes later is for the program it starts."""
    try:
        return set(process.cmdline()[:4])
    except psutil.Error:
        return set()


def free_port() -> int:
    """A port of this machine on which nothing listens.

    Raises:
        EnvironmentProblem: there is none.
    """
    first = random.SystemRandom().randrange(len(_PORTS))
    for port in (*_PORTS[first:], *_PORTS[:first]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise EnvironmentProblem(f"no port is free on this machine, of {_PORTS.start} to {_PORTS.stop - 1}")


def process_space() -> tuple[str, ...]:
    """Equal for two processes that know others by the same ids. Containers with a host's name have ids of their own,
    and several machines may have one name.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return socket.gethostname(), boot.read_text(), str(Path("/proc/self/ns/pid").readlink())
    return (socket.gethostname(),)


def process_of(pid: int) -> psutil.Process | None:
    """A process to watch; None if it has ended already."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def has_ended(process: psutil.Process | None) -> bool:
    """Whether it is gone, or waits as a zombie for its parent to notice."""
    if process is None:
        return True
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def socket_folder() -> Path:
    """Where multiprocessing makes its sockets, in the temporary folder; processes forked from here on share it.

    Raises EnvironmentProblem where that folder's path leaves no room for their names: whoever waited for one would
    wait for ever.
    """
    folder = multiprocessing.util.get_temp_dir()
    longest = len(os.fsencode(folder)) + len("/listener-12345678")
    if longest > _SOCKET_BYTES:
        raise EnvironmentProblem(
            f"the temporary folder's path is {longest - _SOCKET_BYTES} bytes too long for sockets in {folder}: set "
            "TMPDIR to a shorter one, such as /tmp, or load without processes (--set data.workers=0)"
        )
    return Path(folder)


def _already_gone(found: list[psutil.Process], starter: int | None) -> str | None:
    """A launcher that must have been there and ended before this process could look."""
    if starter is not None and starter not in {process.pid for process in found}:
        return "hebrew-asr"
    started_by_launch = any(part.startswith("--local_rank=") for part in sys.argv)  # only launch.py passes it on
    if started_by_launch and not any(_LAUNCH in _line(process) for process in found):
        return "DeepSpeed's launch.py"
    top = found[-1] if found else None
    if top is not None and _LAUNCH in _line(top) and _was_adopted(top):
        return "DeepSpeed's runner.py"
    return None


def _was_adopted(process: psutil.Process) -> bool:
    """Whether what started it is gone: its parent is of another session, which it did not leave by itself."""
    try:
        session = os.getsid(process.pid)
        return session not in (process.pid, os.getsid(process.ppid()))
    except (OSError, psutil.Error):
        return True
