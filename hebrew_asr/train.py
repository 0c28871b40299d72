"""The training entry that the DeepSpeed launcher runs:

deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # run as a file: its folder must not shadow other packages' names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hebrew_asr.config.misplaced import refuse_recipe_keys
from hebrew_asr.config.options import parse_options
from hebrew_asr.cores import loading_modules
from hebrew_asr.errors import HebrewASRError, Preempted, Unsaved, exit_code_of, exit_process
from hebrew_asr.launching.job import Job
from hebrew_asr.launching.stopping import StopRequest, nothing_to_save
from hebrew_asr.logs import log
from hebrew_asr.streams import outlive_the_terminal, speak_utf8

FIRST_SPEAKS_S = 2.0
"""Seconds by which other ranks leave later: the launcher kills all ranks when one leaves, and the first has a message
to finish."""


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train, close. Returns the exit code."""
    if argv is None:
        speak_utf8()
        argv = sys.argv[1:]
    argv = [part for part in argv if not part.startswith("--local_rank")]  # the launcher's; ranks come from RANK
    is_main = os.environ.get("RANK", "0") == "0"
    outlive_the_terminal()
    job = Job.of_this_rank()
    stop = StopRequest(prints=is_main, report=job.report)
    stop.install()
    job.join()
    code = 1
    try:
        code = exit_code_of(lambda: _train(argv, stop), quiet=lambda error: not is_main and _first_rank_prints(error))
    except SystemExit as left:  # options that cannot be parsed, or --help
        code = left.code if isinstance(left.code, int) else 2
        raise
    finally:
        stop.leaving(code)
        job.report(code)
    if code and not is_main:
        time.sleep(FIRST_SPEAKS_S)
    return code


def _first_rank_prints(error: HebrewASRError) -> bool:
    """Before the ranks meet, every one of them finds the same mistake; and all of them stop, or end, together."""
    from hebrew_asr.engine import dist

    return error.is_told or isinstance(error, (Preempted, Unsaved)) or not dist.has_started()


def _train(argv: list[str], stop: StopRequest) -> int:
    from hebrew_asr.training.arguments import TrainArguments, finished

    refuse_recipe_keys(TrainArguments, argv)
    arguments = parse_options(TrainArguments, "hebrew_asr/train.py", argv)
    if (message := finished(arguments)) is not None:
        stop.say(message)
        return 0

    if os.environ.get("RANK", "0") == "0":
        log.info("loading PyTorch and DeepSpeed")

    with loading_modules():
        from hebrew_asr.engine import dist
        from hebrew_asr.training.loop import train
        from hebrew_asr.training.setup import set_up

    try:
        run = set_up(arguments, stop)
        try:
            train(run)
        finally:
            run.tracker.close()
            run.files.close()
            run.lock.release()
    except HebrewASRError:
        raise
    except Exception as error:
        if stop.reason is not None and not stop.unsaved:  # another rank has left already
            raise Preempted(nothing_to_save(stop.reason)) from error
        raise
    run.engine.close()
    dist.stop()
    return 0


if __name__ == "__main__":
    exit_process(main())
