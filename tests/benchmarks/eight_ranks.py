"""The number of ranks changes nothing that is learned, nor does a Ctrl-C: eight ranks, stopped, go on as three.

    python tests/benchmarks/eight_ranks.py

The demo's recipe and tiny model, a few steps over both phases, on whatever cores there are: by ``deepspeed --num_gpus
8`` in a terminal, ended by Ctrl-C in the first phase and finished by ``deepspeed --num_gpus 3``; and on one rank. It
prints the largest difference of a step's loss, and leaves with 1 if that is above 1e-6 nats.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.demo.synthesis import synthesize_corpus
from hebrew_asr.demo.tiny import TinySpec, save_tiny
from tests.support.terminal import CTRL_C, Terminal, wait_until_gone
from tests.support.tiny_task import CPU_PROFILE, ROOT, environment, events, free_port, last_step, wait_for

CLIPS, STOP_AFTER, TOLERANCE = 96, 2, 1e-6
"""96 clips are 3 steps an epoch; the second phase begins after 6 of the 9 steps."""


def _arguments(folder: Path, run: str) -> list[str]:
    changes = (
        f"model.path={folder / 'base'}",
        f"data.folder={folder / 'data'}",
        "phases.1.epochs=1",
        "evaluation.at_start=false",
        "evaluation.full_each_epoch=false",
        "evaluation.sample_clips=3",
        "checkpoints.every_steps=100",
        "logging.every_steps=1",
        "logging.wandb=false",
    )
    sets = [part for change in changes for part in ("--set", change)]
    return ["--ds", str(CPU_PROFILE), "--recipe", "demo", "--run", str(folder / run), "--resume", "auto", *sets]


def _line(ranks: int, folder: Path, run: str) -> list[str]:
    place = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [str(Path(sys.executable).parent / "deepspeed"), *place, "hebrew_asr/train.py", *_arguments(folder, run)]


def main() -> int:
    """Train, print the losses and how far they are apart."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="eight-ranks-") as name:
        folder = Path(name)
        synthesize_corpus(folder / "data", train_clips=CLIPS, eval_clips=8, seed=0, processes=2)
        texts = [clip.transcript for clip in read_manifest(folder / "data" / "train.jsonl")]
        save_tiny(folder / "base", TinySpec(), texts, 0)
        several, one = folder / "several", folder / "one"
        terminal = Terminal(_line(8, folder, "several"), environment=environment(), folder=ROOT)
        wait_for(
            lambda: last_step(several) >= STOP_AFTER,
            lambda: terminal.process.poll() is not None and terminal.text,
            limit_s=500,
        )
        terminal.type(CTRL_C)
        asked = time.monotonic()
        wait_until_gone(str(several), 40)
        stopped = last_step(several)
        print(f"eight ranks left {time.monotonic() - asked:.1f} s after Ctrl-C, saved at step {stopped}")
        for ranks, run in ((3, "several"), (1, "one")):
            subprocess.run(
                _line(ranks, folder, run), env=environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
        losses = [[row["loss"] for row in events(run, "train")] for run in (several, one)]
    apart = [abs(a - b) for a, b in zip(*losses, strict=True)]
    for step, (a, b, difference) in enumerate(zip(*losses, apart, strict=True), 1):
        print(f"step {step} on {8 if step <= stopped else 3} ranks {a:.7f}, on one {b:.7f}, apart {difference:.1e}")
    print(f"at most {max(apart):.1e} nats apart")
    return int(max(apart) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
