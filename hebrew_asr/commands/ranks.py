"""What the commands have in common that start ranks on this machine: ``train``, ``bench`` and ``lr-range``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hebrew_asr.config.values import Port, PositiveInt
from hebrew_asr.training.arguments import RecipeArguments, TrainArguments, as_argv

if TYPE_CHECKING:
    from hebrew_asr.launching.command import Launch


@dataclass
class RankArguments(RecipeArguments):
    """How many ranks there are, and where they meet."""

    num_gpus: PositiveInt | None = None
    """Ranks; unless given, one per visible GPU in the order of CUDA_VISIBLE_DEVICES; on a CPU the profile's number."""
    master_port: Port | None = None
    """Port on which the ranks meet; a free one unless given."""

    def launch_of(self, script: Path, options: RecipeArguments, kind: type[RecipeArguments]) -> Launch:
        """Ranks that run ``script`` with the fields of ``kind`` in ``options``; raises what ``launch_for`` does."""
        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.launching.command import launch_for

        hardware = load_profile(self.ds).hardware
        on_gpus, usual_ranks = hardware.accelerator == "cuda", hardware.num_ranks
        ranks, port = self.num_gpus, self.master_port
        return launch_for(script, as_argv(options, kind), ranks, port, on_gpus=on_gpus, usual_ranks=usual_ranks)

    def measure(self, script: Path, options: TrainArguments) -> int:
        """Run ``script`` on every rank; gives the exit code of the ranks, or raises what ``check`` and ``run`` do."""
        from hebrew_asr.launching.command import run
        from hebrew_asr.training.check import check

        launch = replace(self.launch_of(script, options, type(options)), resumes=False)
        check(options, launch.num_ranks)  # a mistake is one line here, and there one of each rank
        return run(launch)
