"""Runs under the ranks of a test: what DeepSpeed's optimizer really holds, beside what the plan says it holds.

usage: memory_worker.py TASK OUT '[{"stage": 2, "bf16": true, "offload": false}, …]'
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.engine import dist
from hebrew_asr.engine.engine import MicroBatch, TrainEngine
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.model.phases import set_phase
from hebrew_asr.profiles import Hardware, Profile, batching
from hebrew_asr.training.zero_memory import sizes_of, zero_memory
from tests.support.engine_worker import RATES, task_recipe

BUCKET = 4096


def profile_of(spec: dict) -> Profile:
    """A profile with a small bucket, so that one parameter is larger."""
    zero: dict = {"stage": spec["stage"], "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
    zero["overlap_comm"] = False
    if spec.get("offload"):
        zero["offload_optimizer"] = {"device": "cpu"}
    config: dict = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": zero}
    if spec["bf16"]:
        config["bf16"] = {"enabled": True}
        config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return Profile("test", "test", Hardware("cpu"), config)


def held_by(optimizer: Any, weights: set[int]) -> int:
    """Bytes of the tensors that can be reached from ``optimizer``, without those of the model's weights."""
    seen, waiting, storages = {id(optimizer)}, [optimizer], {}
    while waiting:
        for item in gc.get_referents(waiting.pop()):
            if id(item) in seen or isinstance(item, type | torch.nn.Module) or callable(item):
                continue
            seen.add(id(item))
            if isinstance(item, torch.Tensor):
                for tensor in (item, item.grad if item.is_leaf else None):
                    if tensor is not None and not tensor.is_meta and tensor.untyped_storage()._cdata not in weights:
                        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            elif isinstance(item, dict | list | tuple | set) or hasattr(item, "__dict__"):
                waiting.append(item)
    return sum(storages.values())


def measure(task: Path, ranks: dist.Ranks, spec: dict) -> dict:
    """Two steps; what is held when the second one's backward is over, and after it."""
    recipe, profile = task_recipe(task), profile_of(spec)
    asr = load_model(recipe.model, dtype=torch.bfloat16 if profile.bf16 else torch.float32)
    expected = zero_memory(profile, sizes_of(asr, set_phase(asr, recipe, recipe.phases[0])), ranks.size)
    plan, tokenizer, mel = batching(profile, recipe, ranks.size), load_tokenizer(recipe.model.path), LogMel()
    clips = read_manifest(task / "data" / "train.jsonl")
    sampler = StepSampler([clip.duration_s for clip in clips], plan, recipe.seed)
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps = StepDataset(clips, sampler, recipe, tokenizer, geometry, ranks.rank)
    engine = TrainEngine(PackedASR(asr), asr, recipe, profile, plan, ranks)
    engine.enter_phase(0)
    found: dict[str, int] = {}

    def weights() -> set[int]:
        kept = [getattr(p, "ds_tensor", p) for p in asr.parameters()]
        return {p.untyped_storage()._cdata for p in [*asr.parameters(), *kept]}

    @contextmanager
    def look(part: str) -> Iterator[None]:
        if part == "step":
            gc.collect()
            found["before step"] = held_by(engine._engine.optimizer, weights())
        yield

    for step in range(2):
        micro = [MicroBatch((m.packed, mel(m.packed)), m.num_labels) for m in steps[step].micro_batches]
        with engine.timed(look):
            engine.step(micro, RATES)
    gc.collect()
    found["after step"] = held_by(engine._engine.optimizer, weights())
    engine.close()
    return {"found": found, "expected": asdict(expected), "spec": spec, "num_ranks": ranks.size}


def main(task: Path, out: Path, specs: list[dict]) -> None:
    ranks = dist.start("cpu")
    rows = [measure(task, ranks, spec) for spec in specs]
    if ranks.is_main:
        out.write_text(json.dumps(rows))
    dist.stop()


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(given[0]), Path(given[1]), json.loads(given[2]))
