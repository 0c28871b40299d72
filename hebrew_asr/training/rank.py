"""What the process of a rank does around its work: it hears of stops, tells its exit code, and lets the first speak."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from hebrew_asr.errors import EnvironmentProblem, HebrewASRError, Preempted, exit_code_of, wait_if_ending
from hebrew_asr.files import disk_fault
from hebrew_asr.launching.job import Job
from hebrew_asr.launching.place import rank_from_environment
from hebrew_asr.launching.stopping import StopRequest, nothing_to_save
from hebrew_asr.streams import outlive_the_terminal, speak_utf8

FIRST_SPEAKS_S = 2.0
"""Seconds by which other ranks leave later: the launcher kills all ranks when one leaves, and the first has a message
to finish."""


def run_rank(work: Callable[[list[str], StopRequest], int], argv: list[str] | None, *, resumes: bool = True) -> int:
    """The exit code of ``work``, which gets the options of this rank and is told of stops.

    Args:
        work: returns its exit code.
        argv: options; those of the process unless given.
        resumes: whether the next start goes on from what this one saves, as is said at a stop.
    """
    if argv is None:
        speak_utf8()
        argv = sys.argv[1:]
    options = [part for part in argv if not part.startswith("--local_rank")]  # the launcher's; ranks come from RANK
    is_main = rank_from_environment() == 0
    outlive_the_terminal()
    job = Job.of_this_rank()
    stop = StopRequest(prints=is_main, resumes=resumes, report=job.report)
    stop.install()
    job.join()
    code, parts = 1, False

    def hear(error: HebrewASRError) -> bool:
        nonlocal parts
        parts = error.is_common
        return not is_main and _first_rank_prints(error)

    try:
        code = exit_code_of(lambda: _unless_stopped(work, options, stop), quiet=hear)
    except SystemExit as left:  # options that cannot be parsed, or --help
        code = left.code if isinstance(left.code, int) else 2
        raise
    finally:
        stop.leaving(code)
        job.report(code)
    if not (parts and _part()) and code and not is_main:
        time.sleep(FIRST_SPEAKS_S)
    return code


def _part() -> bool:
    from hebrew_asr.engine import dist

    return dist.part()


def _unless_stopped(work: Callable[[list[str], StopRequest], int], argv: list[str], stop: StopRequest) -> int:
    try:
        return work(argv, stop)
    except Exception as error:
        wait_if_ending()  # a thread that said why, and killed the loaders
        if isinstance(error, HebrewASRError):
            raise
        if stop.reason is not None and not stop.unsaved:  # another rank has left already
            alone = Preempted(nothing_to_save(stop.reason, resumes=stop.resumes))
            alone.is_common = False
            raise alone from error
        if isinstance(error, OSError) and (refused := disk_fault(error)) is not None:
            raise EnvironmentProblem(refused) from error
        raise


def _first_rank_prints(error: HebrewASRError) -> bool:
    """Of others: before the ranks meet, all find the same mistake; and all of them stop, or end, together."""
    from hebrew_asr.engine import dist

    return error.is_common or isinstance(error, Preempted) or not dist.has_started()
