"""From manifest to packed steps: what is drawn for a clip, and what that does to its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import Clip
from tests.support.native import build


def long_clips(folder: Path) -> list[Clip]:
    """Silence, from well below to exactly 30 s, of which the one of 27 s is the longest that 0.9 may slow down."""
    clips = []
    for seconds in (3.0, 20.0, 26.999, 27.0, 27.001, 28.5, 29.999, 30.0):
        path = folder / f"{seconds}.flac"
        soundfile.write(path, np.zeros(round(seconds * SAMPLE_RATE_HZ), np.int16), SAMPLE_RATE_HZ)
        clips.append(Clip(str(path), "language Hebrew<asr_text>שקט", path.stem, seconds, ""))
    return clips


def test_no_clip_is_slowed_down_beyond_what_the_encoder_was_trained_on(tmp_path):
    clips, (_, tokenizer), epochs = long_clips(tmp_path), build(), 12
    recipe = load_recipe("round2", ["augmentation.speed_factors=[0.9,1.0,1.1]", f"clips_per_step={len(clips)}"])
    batching = Batching(clips_per_step=len(clips), num_ranks=1, accumulation=1, max_micro_batch=len(clips))
    steps = StepDataset(clips, batching, recipe, tokenizer, EncoderGeometry(), 0)
    shapes = steps.fix_shapes(epochs)
    played: dict[str, set[float]] = {}
    for epoch in range(epochs):
        (micro,) = steps[epoch].micro_batches
        assert micro.packed.max_clip_tokens <= max(shape.longest_clip for shape in shapes)
        for clip_id, samples in zip(micro.packed.clip_ids, micro.packed.samples, strict=True):
            played.setdefault(clip_id, set()).add(round(float(clip_id) * SAMPLE_RATE_HZ / samples, 3))
    assert max(float(clip_id) / min(speeds) for clip_id, speeds in played.items()) <= 30.0
    assert all(speeds == {0.9, 1.0, 1.1} for clip_id, speeds in played.items() if float(clip_id) <= 27.0)
    assert all(speeds == {1.0, 1.1} for clip_id, speeds in played.items() if float(clip_id) > 27.0)
