"""``hebrew-asr train``: a shorthand for the deepspeed launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hebrew_asr.config.values import Port, PositiveInt
from hebrew_asr.logs import log
from hebrew_asr.streams import outlive_the_terminal
from hebrew_asr.training.arguments import TrainArguments, as_argv, finished

TRAIN_FILE = Path(__file__).parents[1] / "train.py"


@dataclass
class Command(TrainArguments):
    """Train through the DeepSpeed launcher; the same as

    deepspeed --num_gpus N hebrew_asr/train.py --ds ds_configs/<profile>.json …

    but a stop waits for the ranks to save, however long that takes, and the exit code is theirs.
    """

    num_gpus: PositiveInt | None = None
    """Ranks to start; one per visible GPU in the order of CUDA_VISIBLE_DEVICES, or on a CPU as the profile says."""
    master_port: Port | None = None
    """Port on which the ranks meet; a free one unless given."""

    def run(self) -> int:
        outlive_the_terminal()
        if (message := finished(self)) is not None:
            print(message)
            return 0
        log.info("checking recipe, profile and clips")

        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.launching.command import launch_for, run
        from hebrew_asr.training.check import check

        options = as_argv(self, TrainArguments)
        launch = launch_for(load_profile(self.ds).hardware, TRAIN_FILE, options, self.num_gpus, self.master_port)
        check(
            self, launch.num_ranks
        )  # here a mistake is one line; under the launcher it is one line among the launcher's
        return run(launch)
