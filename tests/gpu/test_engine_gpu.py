"""The engine on CUDA: a step is queued without a wait for the device, whatever its gradients turn out to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
from hebrew_asr.profiles import Hardware, batching
from tests.gpu.test_packed_gpu import no_host_sync
from tests.support import engine_worker
from tests.support.tiny_task import make_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("micro", [8, 4])
def test_a_step_never_waits_for_the_device(tmp_path, micro):
    task = make_task(tmp_path)
    recipe, ranks = engine_worker.task_recipe(task), dist.start("cuda")
    profile = replace(engine_worker.profile(1, True, micro), hardware=Hardware("cuda"))
    plan = batching(profile, recipe, 1)
    asr = load_model(recipe.model, dtype=torch.bfloat16).cuda()
    clips = read_manifest(task / "data" / "train.jsonl")
    sampler = StepSampler([clip.duration_s for clip in clips], plan, recipe.seed)
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps = StepDataset(clips, sampler, recipe, load_tokenizer(recipe.model.path), geometry, 0)
    mel = LogMel().cuda()

    def micro_batches(step: int) -> list[MicroBatch]:
        parts = [(part.packed.to("cuda"), part.num_labels) for part in steps[step].micro_batches]
        return [MicroBatch((packed, mel(packed)), labels) for packed, labels in parts]

    engine = TrainEngine(PackedASR(asr), asr, recipe, profile, plan, ranks)
    engine.enter_phase(0)
    for step in range(2):
        engine.step(micro_batches(step), engine_worker.RATES)
        engine.prove_phase()
    clean, poisoned = micro_batches(2), micro_batches(3)
    for part in poisoned:
        part.inputs[1].fill_(torch.nan)
    torch.cuda.synchronize()
    with no_host_sync():
        results = [engine.step(batch, engine_worker.RATES) for batch in (clean, poisoned, clean)]
    figures = [result.figures() for result in results]
    assert [each.applied for each in figures] == [True, False, True]
    assert figures[2].loss < figures[0].loss, "the step of NaN changed nothing, the one before it trained"
    engine.close()
    dist.stop()
