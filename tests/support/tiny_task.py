"""A task small enough for a test: a few seconds of tones with Hebrew text, and a tiny model to train on them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, to_int16
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.demo.tiny import TinySpec, save_tiny
from hebrew_asr.launching.processes import free_port as free_port
from hebrew_asr.text.prompt import build_target

ROOT = Path(__file__).parents[2]
TRAIN_FILE = ROOT / "hebrew_asr" / "train.py"
CPU_PROFILE = ROOT / "ds_configs" / "cpu.json"
WORDS = ["שלום", "עולם", "ילדה", "כותבת", "סיפור", "גדול", "היום", "בבית"]
SPEC = TinySpec(
    d_model=16,
    encoder_layers=3,
    encoder_attention_heads=2,
    encoder_ffn_dim=32,
    downsample_hidden_size=4,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=12,
    intermediate_size=48,
    vocabulary=300,
)
RECIPE_CHANGES = (
    'unfrozen_layers={"llm_top": 2, "audio_top": 2}',
    "clips_per_step=8",
    "data.prepare=false",
    "data.workers=0",
    "logging.wandb=false",
    "logging.report=false",
    "logging.every_steps=1",
    "evaluation.sample_clips=4",
    "evaluation.choose_final=false",  # final weights are compared with those of the last step
    "optimizer.join_warmup_steps=2",
)
NO_EVALUATION = (
    *("evaluation.at_start=false", "evaluation.full_each_epoch=false", "evaluation.sample_clips=1"),
    *("evaluation.min_new_tokens=1", "evaluation.max_tokens_per_s=1"),
)
"""But of one clip at the end, in a few tokens: an untrained model never ends by itself."""
ENDLESS = "phases.0.epochs=500"
"""A run to be stopped."""
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
"""Of a profile, on every ZeRO stage but 0."""


def make_task(folder: Path, *, train_clips: int = 20, eval_clips: int = 4, spec: TinySpec = SPEC) -> Path:
    """Write ``data/`` (manifests and clips of 0.4 to 2.2 s) and ``base/`` (a tiny model)."""
    rng = np.random.default_rng(0)
    for name, count in (("train", train_clips), ("eval", eval_clips)):
        clips = [_clip(folder / "data", name, i, rng) for i in range(count)]
        write_manifest(folder / "data" / f"{name}.jsonl", clips)
    save_tiny(folder / "base", spec, [" ".join(WORDS)], 0)
    return folder


def _clip(folder: Path, name: str, index: int, rng: np.random.Generator) -> Clip:
    duration_s = float(rng.uniform(0.4, 2.2))
    times = np.arange(int(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 3000) * times) + 0.01 * rng.standard_normal(len(times))
    path = folder / "clips" / f"{name}{index}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, to_int16(tone.astype(np.float32)), SAMPLE_RATE_HZ)
    text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 5))))
    return Clip(str(path), build_target(text), f"{name}{index}", len(times) / SAMPLE_RATE_HZ, f"speaker{index % 3}")


def launcher(ranks: int, port: int) -> list[str]:
    """The launcher's command line up to the script."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "-q"),
        *("--num_gpus", str(ranks), "--master_port", str(port)),
    ]


def environment() -> dict[str, str]:
    """On the CPU, found without installing anything; ``conftest.py`` has set the number of threads."""
    return {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def write_profile(path: Path, *, of: Path = CPU_PROFILE, **keys: object) -> Path:
    """Write a shipped profile with other values of some keys; returns ``path``."""
    path.write_text(json.dumps({**json.loads(of.read_text(encoding="utf-8")), **keys}), encoding="utf-8")
    return path


def train_arguments(task: Path, run: Path, *changes: str, ds: Path = CPU_PROFILE, resume: str = "never") -> list[str]:
    """Arguments of ``hebrew_asr/train.py`` for the tiny task."""
    fixed = [f"model.path={task / 'base'}", f"data.folder={task / 'data'}"]
    sets = [part for change in (*RECIPE_CHANGES, *fixed, *changes) for part in ("--set", change)]
    return ["--ds", str(ds), "--run", str(run), "--resume", resume, *sets]


def events(run: Path, kind: str) -> list[dict]:
    """Records of one kind in a run's metrics."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["event"] == kind]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of a run's ``final/``."""
    return load_file(run / "final" / "model.safetensors")


def last_step(run: Path) -> int:
    """Of the last training record; 0 before there is one."""
    rows = events_so_far(run, "train")
    return rows[-1]["step"] if rows else 0


def events_so_far(run: Path, kind: str) -> list[dict]:
    """``events`` of a run that is going on."""
    try:
        return events(run, kind)
    except (OSError, ValueError):  # not there yet; or a line is being written
        return []


def wait_for(condition: Callable[[], object], has_ended: Callable[[], object], limit_s: float = 240.0) -> None:
    """Wait for a moment in a run; what ``has_ended`` returns once the run has ended is told."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the moment never came"
        if has_ended():
            time.sleep(3.0)  # the first rank is the last to leave, and says why
            raise AssertionError(f"the run ended before its moment came: {has_ended()}")
        time.sleep(0.004)


def lines_but_the_first(output: Path) -> list[str]:
    """What a run that ends early said, but for the line that says that it begins."""
    return [line for line in output.read_text().splitlines() if not line.endswith("loading PyTorch and DeepSpeed")]


def without_times(rows: list[dict]) -> list[dict]:
    """Records without what differs from run to run."""
    return [{key: value for key, value in row.items() if not key.endswith("_s") or key == "audio_s"} for row in rows]
