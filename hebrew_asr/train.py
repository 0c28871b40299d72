"""The training entry that the DeepSpeed launcher runs:

deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: its folder must not shadow other packages' names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hebrew_asr.config.misplaced import refuse_recipe_keys
from hebrew_asr.config.options import parse_options
from hebrew_asr.cores import loading_modules
from hebrew_asr.errors import exit_process
from hebrew_asr.launching.place import rank_from_environment
from hebrew_asr.launching.stopping import StopRequest
from hebrew_asr.logs import log
from hebrew_asr.training.rank import run_rank


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train, close. Returns the exit code."""
    return run_rank(_train, argv)


def _train(argv: list[str], stop: StopRequest) -> int:
    from hebrew_asr.training.arguments import TrainArguments, finished

    refuse_recipe_keys(TrainArguments, argv)
    arguments = parse_options(TrainArguments, "hebrew_asr/train.py", argv)
    if (message := finished(arguments)) is not None:
        stop.say(message)
        return 0

    if rank_from_environment() == 0:
        log.info("loading PyTorch and DeepSpeed")

    with loading_modules():
        from hebrew_asr.engine import dist
        from hebrew_asr.training.loop import train
        from hebrew_asr.training.setup import set_up

    run = set_up(arguments, stop)
    try:
        train(run)
    finally:
        run.tracker.close()
        run.files.close()
        run.checkpoints.when_written(run.lock.release)
    run.engine.close()
    dist.stop()
    return 0


if __name__ == "__main__":
    exit_process(main())
