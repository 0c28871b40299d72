"""Runs on the ranks of a test: engine steps over changes of phase, everything they did written down.

arguments: TASK '[{"out": DIR, "stage": 2, "bf16": false, "micro": 4, "phases": [0, 0, 1, 1]}, …]'
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.batching import derive_batching
from hebrew_asr.config.profiles import Hardware, Profile
from hebrew_asr.config.recipe import Recipe, load_recipe
from hebrew_asr.data.loader import MicroBatch, StepDataset
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.engine import dist, garbage
from hebrew_asr.engine.engine import TrainEngine
from hebrew_asr.engine.optimizer_state import StateReader, save_partitions
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.passes.forward import training_module
from hebrew_asr.text.prompt import vocabulary
from tests.support.tiny_task import BF16, RECIPE_CHANGES

RATES = {"projector": 2e-3, "llm_top": 1e-3, "head": 1e-3, "audio_top": 1e-3}
PHASES = [
    {"name": "B", "groups": ["projector", "llm_top", "head"]},
    {"name": "A", "groups": ["projector", "llm_top", "head", "audio_top"]},
    {"name": "A again", "groups": ["projector", "llm_top", "head", "audio_top"]},
]


def task_recipe(task: Path, *changes: str) -> Recipe:
    """The shipped recipe, cut down to the tiny task, with a third phase to switch to and fro."""
    phases = [
        {"name": p["name"], "title": "", "epochs": 1, "learning_rates": {g: RATES[g] for g in p["groups"]}}
        for p in PHASES
    ]
    paths = [f"model.path={task / 'base'}", f"data.folder={task / 'data'}", f"phases={json.dumps(phases)}"]
    return load_recipe("round2", [*RECIPE_CHANGES, *paths, *changes])


def profile(
    stage: int, bf16: bool, micro: int, offload: bool = False, compiled: bool = False, **zero: object
) -> Profile:
    """A CPU profile; ``zero``: more keys of its section."""
    config: dict = {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage, **zero}}
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if bf16:
        config |= BF16
        if not stage:
            del config["data_types"]
    return Profile("test", "test", Hardware("cpu", compile=compiled), config)


@dataclass
class Setting:
    """A model, its engine and its data, before the first phase."""

    asr: Any
    engine: TrainEngine
    steps: StepDataset
    mel: LogMel
    device: torch.device

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's, with their features."""
        parts = [(part.packed.to(self.device), part.num_labels) for part in self.steps[step].micro_batches]
        return [MicroBatch(packed, num_labels, self.mel(packed)) for packed, num_labels in parts]


def set_up(task: Path, ranks: dist.Ranks, zero: Profile, *changes: str, passes_compile: bool = True) -> Setting:
    """As the trainer does, without a run directory. ``passes_compile``: or only AdamW, if the profile compiles."""
    recipe = task_recipe(task, *changes)
    asr = load_model(recipe.model, dtype=torch.bfloat16 if zero.bf16 else torch.float32)
    tokenizer, batching = load_tokenizer(recipe.model.path), derive_batching(zero, recipe, ranks.size)
    clips = read_manifest(task / "data" / "train.jsonl")
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps = StepDataset(clips, batching, recipe, tokenizer, geometry, ranks.rank)
    passes = zero if passes_compile else replace(zero, hardware=replace(zero.hardware, compile=False))
    module = training_module(asr, passes)
    engine = TrainEngine(module, asr, recipe, zero, batching, ranks, present_tokens(task, asr))
    return Setting(asr, engine, steps, LogMel().to(ranks.device), ranks.device)


def present_tokens(task: Path, asr: Any) -> torch.Tensor:
    """(rows of the head,) bool, the tokens that occur in the task's training clips."""
    texts = [clip.text for clip in read_manifest(task / "data" / "train.jsonl")]
    present_V = torch.zeros(len(asr.lm_head.weight), dtype=torch.bool)
    present_V[list(vocabulary(load_tokenizer(str(task / "base")), texts))] = True
    return present_V


def run(task: Path, ranks: dist.Ranks, spec: dict) -> None:
    """One engine over ``spec["phases"]``, a phase a step; state is saved around each change, and at the end.

    ``resume``: folder of state to begin with, and ``first``: the steps done by then.
    ``zero``: more keys of the profile's section.
    ``poisoned``: a step whose features are NaN; state is saved around it too.
    """
    out = Path(spec["out"])
    options = {key: spec.get(key, False) for key in ("offload", "compiled")}
    zero = profile(spec["stage"], spec["bf16"], spec["micro"], **options, **spec.get("zero", {}))
    given = set_up(task, ranks, zero, passes_compile=False)  # AdamW does, where the profile compiles
    engine, phase, log = given.engine, spec["phases"][0], []
    engine.enter_phase(phase, StateReader(Path(spec["resume"])) if "resume" in spec else None)
    if "resume" in spec:
        save(engine, out / "start")
    for step, wanted in enumerate(spec["phases"], spec.get("first", 0)):
        if wanted != phase:
            save(engine, out / f"{step}-before")
            engine.enter_phase(wanted)
            save(engine, out / f"{step}-after")
            phase = wanted
        micro_batches = given.micro_batches(step)
        if step == spec.get("poisoned"):
            save(engine, out / f"{step}-before")
            poison(micro_batches)
        figures = engine.step(micro_batches, RATES).figures()
        log.append({**asdict(figures), "proof": engine.prove_phase()})
        if step == spec.get("poisoned"):
            save(engine, out / f"{step}-after")
        if spec.get("count_alive"):
            log[-1] |= alive(given.asr)
    save(engine, out / "end")
    if ranks.is_main:
        (out / "log.json").write_text(json.dumps(log))
    ranks.barrier()
    engine.close()
    assert engine.module.sharded is None, "what is tied to where the weights lie is let go of, recordings too"


def poison(micro_batches: list[MicroBatch]) -> None:
    """Make their features NaN."""
    for micro in micro_batches:
        micro.mel_CBF.fill_(torch.nan)


def alive(asr: torch.nn.Module) -> dict[str, int]:
    """What a change of phase could leak: tensors (but not those that a compiler thinks with), hooks.

    And how many objects a full collection would look through.
    """
    collectable = len(gc.get_objects())
    garbage.take_back()
    tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor)]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in asr.modules())
    return {
        "tensor_bytes": sum(t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"),
        "hooks": hooks,
        "collectable": collectable,
    }


def save(engine: TrainEngine, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_partitions(folder / f"optimizer-rank{engine.ranks.rank:05d}.safetensors", engine.host_state())


def main(arguments: list[str]) -> int:
    task, specs = Path(arguments[0]), json.loads(arguments[1])
    ranks = dist.start("cpu")
    for spec in specs:
        gc.freeze()  # DeepSpeed collects garbage all the time; the end of an engine took back what was set aside
        Path(spec["out"]).mkdir(parents=True, exist_ok=True)
        run(task, ranks, spec)
    dist.stop()
    return 0
