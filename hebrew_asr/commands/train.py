"""``hebrew-asr train``: a shorthand for the deepspeed launcher."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hebrew_asr.config.values import Port, PositiveInt
from hebrew_asr.streams import outlive_the_terminal
from hebrew_asr.training.arguments import TrainArguments, finished

TRAIN_FILE = Path(__file__).parents[1] / "train.py"


@dataclass
class Command(TrainArguments):
    """Train through the DeepSpeed launcher; the same as

    deepspeed --num_gpus N hebrew_asr/train.py --ds ds_configs/<profile>.json …

    but a stop waits for the ranks to save, however long that takes, and the exit code is theirs.
    """

    num_gpus: PositiveInt | None = None
    """Ranks to start; all GPUs of this machine, or the profile's number of CPU ranks, unless given."""
    master_port: Port | None = None
    """Port on which the ranks meet; a free one unless given."""

    def run(self) -> int:
        outlive_the_terminal()
        told = finished(self)
        if told is not None:
            print(told)
            return 0

        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.launching.command import launch_for, run
        from hebrew_asr.training.check import check

        options = ["--ds", self.ds, "--recipe", self.recipe, "--resume", self.resume]
        options += [part for change in self.set for part in ("--set", change)]
        options += ["--run", self.run_dir] if self.run_dir else []
        launch = launch_for(load_profile(self.ds).hardware, TRAIN_FILE, options, self.num_gpus, self.master_port)
        os.environ["WORLD_SIZE"] = str(launch.num_ranks)
        check(self)  # here a mistake is one line; under the launcher it is one line among the launcher's
        del os.environ["WORLD_SIZE"]
        return run(launch)
