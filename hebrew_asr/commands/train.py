"""``hebrew-asr train``: a shorthand for the deepspeed launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from hebrew_asr.training.check import TrainArguments, check
from hebrew_asr.values import Port, PositiveInt

TRAIN_FILE = Path(__file__).parents[1] / "train.py"


@dataclass
class Command(TrainArguments):
    """Train through the DeepSpeed launcher; the same as

    deepspeed --num_gpus N hebrew_asr/train.py --ds ds_configs/<profile>.json …
    """

    num_gpus: PositiveInt | None = None
    """Ranks to start; all GPUs of this machine, or the profile's number of CPU ranks, unless given."""
    master_port: Port = 29500
    """Port on which the ranks meet; another one for a second job on this machine."""

    def run(self) -> int:
        import torch

        from hebrew_asr.profiles import load_profile

        hardware = load_profile(self.ds).hardware
        on_gpus = hardware.accelerator == "cuda"
        ranks = self.num_gpus or (torch.cuda.device_count() if on_gpus else 0) or hardware.num_ranks
        os.environ["WORLD_SIZE"] = str(ranks)
        check(self)  # here a mistake is one line; under the launcher it is one line among the launcher's
        del os.environ["WORLD_SIZE"]
        # The launcher looks for its helpers on PATH; they lie beside this interpreter.
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        if not on_gpus:
            environment.setdefault("DS_ACCELERATOR", "cpu")
        return _run_forwarding_signals(self.launch_command(ranks), environment)

    def launch_command(self, ranks: int) -> list[str]:
        """The launcher's command line."""
        options = ["--ds", self.ds, "--recipe", self.recipe, "--resume", self.resume]
        options += [part for change in self.set for part in ("--set", change)]
        options += ["--run", self.run_dir] if self.run_dir else []
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", "--num_gpus", str(ranks)]
        return [*launcher, "--master_port", str(self.master_port), str(TRAIN_FILE), *options]


def _run_forwarding_signals(command: list[str], environment: dict[str, str]) -> int:
    """Run the launcher; a stop asked of this process is asked of the ranks, which save and leave by themselves.

    The launcher alone would not do: it dies of SIGTERM and leaves its ranks running. In a session of its own it does
    not see a Ctrl-C either, which the terminal would send to all of it at once.
    """
    with subprocess.Popen(command, env=environment, start_new_session=True) as job:

        def forward(number: int, _: object) -> None:
            for process in psutil.Process(job.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(part.startswith("--local_rank") for part in process.cmdline()):
                        process.send_signal(number)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return job.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
