"""Runs under the DeepSpeed launcher: a few engine steps over a change of phase, everything they did written down.

usage: engine_worker.py TASK OUT '{"stage": 2, "bf16": false, "micro": 4, "steps": 6, "switch": 3}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.engine import dist
from hebrew_asr.engine.engine import MicroBatch, TrainEngine
from hebrew_asr.engine.state import save_partitions
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.profiles import Hardware, Profile, batching
from hebrew_asr.recipe import Recipe, load_recipe
from tests.support.tiny_task import RECIPE_CHANGES

RATES = {"projector": 2e-3, "llm_top": 1e-3, "head": 1e-3, "audio_top": 1e-3}


def task_recipe(task: Path) -> Recipe:
    """The shipped recipe, cut down to the tiny task."""
    return load_recipe("round2", [*RECIPE_CHANGES, f"model.path={task / 'base'}", f"data.folder={task / 'data'}"])


def profile(stage: int, bf16: bool, micro: int) -> Profile:
    """A CPU profile."""
    config = {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage}}
    if bf16:
        fp32 = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        config |= {"bf16": {"enabled": True}, **fp32}
    return Profile("test", "test", Hardware("cpu"), config)


def main(task: Path, out: Path, spec: dict) -> None:
    recipe = task_recipe(task)
    dtype = torch.bfloat16 if spec["bf16"] else torch.float32
    asr, tokenizer = load_model(recipe.model, dtype=dtype), load_tokenizer(recipe.model.path)
    plan = batching(
        profile(**{k: spec[k] for k in ("stage", "bf16", "micro")}), recipe, dist.num_ranks_from_environment()
    )
    ranks = dist.start("cpu")
    clips = read_manifest(task / "data" / "train.jsonl")
    sampler = StepSampler([clip.duration_s for clip in clips], plan, recipe.seed)
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps = StepDataset(clips, sampler, recipe, tokenizer, geometry, ranks.rank)
    zero = profile(spec["stage"], spec["bf16"], spec["micro"])
    engine, mel = TrainEngine(PackedASR(asr), asr, recipe, zero, plan, ranks), LogMel()
    engine.enter_phase(0)
    log = []
    for step in range(spec["steps"]):
        if step == spec["switch"]:
            save(engine, out / "before-switch")
            engine.enter_phase(1)
            save(engine, out / "after-switch")
        micro_batches = [
            MicroBatch((micro.packed, mel(micro.packed)), micro.num_labels) for micro in steps[step].micro_batches
        ]
        result = engine.step(micro_batches, RATES)
        log.append(
            {"loss": float(result.loss), "grad_norm": float(result.grad_norm or 0), "proof": engine.prove_phase()}
        )
    save(engine, out / "end")
    if ranks.is_main:
        (out / "log.json").write_text(json.dumps(log))
    ranks.barrier()
    engine.close()
    dist.stop()


def save(engine: TrainEngine, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_partitions(folder / f"optimizer-rank{engine.ranks.rank:05d}.safetensors", engine.host_state())


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(given[0]), Path(given[1]), json.loads(given[2]))
