"""The exception family: the type says whose fault it is, the message says what, where and what to do.

``assert`` is kept for our own invariants. The command line prints a ``HebrewASRError`` as one line and leaves with
its ``exit_code``; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import multiprocessing.util
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

_MAX_SHOWN, _FEW = 300, 8
STOP_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)
"""What people and terminals ask a run to stop by, and schedulers before the time is up (Slurm's --signal, Grid Engine's
-notify, a limit of processor time)."""
_ENDINGS = STOP_SIGNALS[:3]
_ONCE_S, _AGAIN_S, _KILLED_S, _LOOK_S = 0.05, 0.1, 1.0, 0.005
_ends = threading.Event()
TERMINAL_FLUSH_S = 0.1
"""What is printed sooner after Ctrl-C may never be seen: a terminal that makes a signal of it throws away the output
that it has not shown (NOFLSH in termios(3)). Of answers at once Linux 6.18 lost 3 of 200 on two busy cores, and none
that came a millisecond later."""


class HebrewASRError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 1
    is_common = False
    """Whether all ranks raise it, of which the first alone prints it."""


class UsageError(HebrewASRError):
    """The command line, the recipe or the hardware profile asks for something impossible."""

    exit_code = 2


class DataError(HebrewASRError):
    """A file of audio, text or a manifest is missing, unreadable or says something that cannot be."""

    exit_code = 3


class EnvironmentProblem(HebrewASRError):
    """The machine lacks something: a GPU, disk space, a package, a free port."""

    exit_code = 4


class Unsaved(EnvironmentProblem):
    """The disk did not take the state or the model when training ended; the message says what there is instead."""

    is_common = True


class CheckpointError(HebrewASRError):
    """A checkpoint or a model directory is incomplete, of another run, or of another shape."""

    exit_code = 5


class TrainingFault(HebrewASRError):
    """Training itself went wrong: the phase proof failed, the loss stayed non-finite, ranks disagree."""

    exit_code = 6


class OutOfMemory(HebrewASRError):
    """A rank ran out of device memory where the others could not follow it; ``--resume auto`` continues, smaller."""

    exit_code = 75  # as Preempted: starting again is the remedy


class Preempted(HebrewASRError):
    """Asked to stop, as the message says by whom and with what saved; ``--resume auto`` continues. No error."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    is_common = True


def shortened(text: str) -> str:
    """A value to be shown in a message: its first 300 characters."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def first_few(found: Sequence[str]) -> str:
    """What is to be told in one line, where there may be much of it: the first eight, and how many more."""
    more = f"; and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return f"{'; '.join(found[:_FEW])}{more}"


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The most similar of ``known``, or the shortest that holds ``word`` as a part; None where none is like it.

    Args:
        likeness: least ratio of difflib, from 0 to 1.
    """
    names = {name.lower(): name for name in sorted(known, key=len, reverse=True)}
    close = difflib.get_close_matches(word.lower(), names, 1, likeness)
    holds = [name for name in names if len(word) > 2 and word.lower() in name]
    found = close or sorted(holds, key=len)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` to follow ``word``; nothing where :func:`nearest` finds nothing."""
    close = nearest(word, known)
    return "" if close is None else f" (did you mean {close}?)"


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_one_line(error: BaseException) -> str:
    """The beginning of what an error says, for those of a compiler, whose first line says little."""
    return " ".join(str(error).split())[:400]


def flush_s(stream: TextIO) -> float:
    """Seconds after Ctrl-C before which what is printed may never be seen: none where that is no terminal."""
    return TERMINAL_FLUSH_S if stream.isatty() else 0.0


def exit_code_of(run: Callable[[], int], quiet: Callable[[HebrewASRError], bool] = lambda _: False) -> int:
    """The exit code of ``run``; one of our own errors becomes one line on stderr and its own code.

    Args:
        run: returns its exit code.
        quiet: whether another process prints this error.
    """
    try:
        return run()
    except HebrewASRError as error:
        if not quiet(error):
            if isinstance(error, Preempted):
                _tell_stop(str(error))
            else:
                _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as asked:
        exec("")  # of an exec that ended so, as dataclasses have, Python remembers the last, and ends itself by SIGINT
        number = signal_of(asked)
        _tell_stop("interrupted" if number == signal.SIGINT else f"ended by {number.name}")
        return 128 + number
    except BrokenPipeError:  # the reader left, as head does
        _drop_what_fails()
        return 141


def _tell_stop(text: str) -> None:
    """Say it when the terminal shows it. From here on Ctrl-C, which a held key repeats, changes nothing any more."""
    hear_no_end()
    time.sleep(flush_s(sys.stderr))
    _tell(text)


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody can be told
        _drop(sys.stderr)


def signal_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised it: the one that it names, else Ctrl-C's."""
    return signal.Signals(next(iter(interrupt.args), signal.SIGINT))


def end_as_by_ctrl_c() -> None:
    """SIGTERM, and the SIGHUP of a terminal that is gone, end this process as Ctrl-C does: what it had begun is undone.

    Not where they are ignored (nohup). A child that this process forks ends by them at once. One that follows another
    closely is the same wish: timeout(1) signals a process and then its group, and what is undone must not be broken
    into. What is printed to a terminal that is gone is dropped: as an error it would take the place of the signal.
    """
    owner, heard_s = os.getpid(), [float("-inf")]

    def end(number: int, _: object) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if time.monotonic() - heard_s[0] > _ONCE_S:
            _drop_what_fails()
            heard_s[0] = time.monotonic()
            raise KeyboardInterrupt(number)

    for number in _ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def hear_no_end() -> None:
    """What a command did is done and told: a signal would only break into the end of the interpreter."""
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _drop_what_fails() -> None:
    """What is left for a terminal that is gone, or a pipe that nobody reads, would change the exit code to 120."""
    for stream in (sys.stdout, sys.stderr):
        state = select.poll()
        with contextlib.suppress(OSError):  # it may be no file for a while, as where an option parser's words are read
            state.register(stream, select.POLLOUT)
            if any(found & select.POLLERR for _, found in state.poll(0)):
                _drop(stream)


def _drop(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def heard_again() -> Iterator[None]:
    """Python ignores what is raised in a ``__del__`` or a callback: a signal that raised there is sent again."""
    tell, again = sys.unraisablehook, list[threading.Timer]()

    def send_again(swallowed: Any) -> None:
        if isinstance(swallowed.exc_value, KeyboardInterrupt):
            again.append(threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal_of(swallowed.exc_value))))
            again[-1].start()
        else:
            tell(swallowed)

    try:
        sys.unraisablehook = send_again
        yield
    finally:
        sys.unraisablehook = tell
        for timer in again:
            timer.cancel()


def exit_process(code: int) -> NoReturn:
    """End a rank's process, with an exit code that nothing changes: resuming goes by it.

    After an error the process group still stands, and taking it apart together with the interpreter can abort (torch
    2.11 on Python 3.11.2). As at any end, a checkpoint that is being written is finished first.
    """
    for number in STOP_SIGNALS:  # too late to change anything, the code included
        signal.signal(number, signal.SIG_IGN)
    if not code:
        sys.exit(0)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    end_at_once(code)


def end_children() -> None:
    """Kill the processes that multiprocessing started here, and wait until they are gone, for ``_KILLED_S`` at most.

    Loaders ignore SIGTERM. One that is stuck in a read does not end before the read does, and whoever waited for it,
    as the interpreter does at its own end, would wait for ever.
    """
    deadline = time.monotonic() + _KILLED_S
    for child in multiprocessing.active_children():
        child.kill()
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def end_at_once(code: int) -> NoReturn:
    """``os._exit``, but no child process stays, nor what multiprocessing made in the temporary folder for sockets."""
    _ends.set()
    end_children()  # first: they would tell of the folder that they miss
    with contextlib.suppress(OSError):
        shutil.rmtree(multiprocessing.util.get_temp_dir())
    os._exit(code)


def wait_if_ending() -> None:
    """Return at once, unless another thread is in :func:`end_at_once`: what is missed since then is its doing."""
    while _ends.is_set():
        time.sleep(_KILLED_S)
