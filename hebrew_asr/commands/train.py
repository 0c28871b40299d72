"""``hebrew-asr train``: a shorthand for the deepspeed launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hebrew_asr.commands.ranks import RankArguments
from hebrew_asr.launching.command import run, stopped_at_once
from hebrew_asr.logs import log
from hebrew_asr.streams import outlive_the_terminal
from hebrew_asr.training.arguments import TrainArguments, finished

TRAIN_FILE = Path(__file__).parents[1] / "train.py"


@dataclass
class Command(RankArguments, TrainArguments):
    """Train through the DeepSpeed launcher; the same as

    $ deepspeed --num_gpus N hebrew_asr/train.py --ds ds_configs/<profile>.json …

    but a stop waits for the ranks to save, however long that takes, and the exit code is theirs.

    $ hebrew-asr train --ds a100x8
    (the Round 2 recipe on 8 × A100; runs/round2/report.html is a page to watch it by)
    $ hebrew-asr train --ds a100x8 --resume auto
    (goes on after any stop)
    $ hebrew-asr train --ds rtx4090x1 --data mine --run runs/mine --set phases.0.epochs=1
    (your own clips, one value changed)
    """

    def run(self) -> int:
        outlive_the_terminal()
        if (message := finished(self)) is not None:
            print(message)
            return 0
        log.info("checking recipe, profile and clips")
        with stopped_at_once():
            from hebrew_asr.training.check import check  # loads torch

            launch = self.launch_of(TRAIN_FILE, self, TrainArguments)
            check(self, launch.num_ranks)  # a mistake is one line here, and under the launcher one among its own lines
        return run(launch)
