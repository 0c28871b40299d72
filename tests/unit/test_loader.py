"""From manifest to packed steps: what is drawn for a clip, and what that does to its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from hebrew_asr.audio.augment import clip_seed, draw_masks, draw_speed, perturbed_length
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audio.frames import EncoderGeometry, num_frames
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
        assert micro.packed.shape in shapes
        for clip_id, samples in zip(micro.packed.clip_ids, micro.packed.samples, strict=True):
            played.setdefault(clip_id, set()).add(round(float(clip_id) * SAMPLE_RATE_HZ / samples, 3))
    assert max(float(clip_id) / min(speeds) for clip_id, speeds in played.items()) <= 30.0
    assert all(speeds == {0.9, 1.0, 1.1} for clip_id, speeds in played.items() if float(clip_id) <= 27.0)
    assert all(speeds == {1.0, 1.1} for clip_id, speeds in played.items() if float(clip_id) > 27.0)


def test_batches_that_run_at_the_same_time_take_one_shape_on_all_ranks(tmp_path):
    clips, (_, tokenizer), epochs = long_clips(tmp_path), build(), 6
    recipe = load_recipe("round2", ["clips_per_step=7"])
    batching = Batching(clips_per_step=7, num_ranks=3, accumulation=2, max_micro_batch=2)
    sets = [StepDataset(clips, batching, recipe, tokenizer, EncoderGeometry(), rank) for rank in range(3)]
    shapes = [steps.fix_shapes(2 * epochs) for steps in sets]
    assert shapes[0] == shapes[1] == shapes[2] and len(shapes[0]) > 1
    (tmp_path / "20.0.flac").write_bytes(b"damaged")
    for step in range(2 * epochs):
        for together in zip(*(steps[step].micro_batches for steps in sets), strict=True):
            assert len({micro.packed.shape for micro in together}) == 1


def test_a_clip_that_comes_again_in_an_epoch_is_augmented_anew_and_alike_on_any_ranks(tmp_path):
    """Its first turn is what it was when no clip came twice: figures on record stay so."""
    (_, tokenizer), clips = build(), []
    for name, seconds in (("own/a", 2.0), ("own/b", 3.0), *((f"crowd/{n}", 1.0 + n / 10) for n in range(10))):
        path = tmp_path / f"{name.replace('/', '-')}.flac"
        soundfile.write(path, np.zeros(round(seconds * SAMPLE_RATE_HZ), np.int16), SAMPLE_RATE_HZ)
        clips.append(Clip(str(path), "language Hebrew<asr_text>שקט", name, seconds))
    recipe = load_recipe("round2", ['data.weights={"B": {"own": 1, "crowd": 1}}', "clips_per_step=4"])
    spec, factors = recipe.augmentation, recipe.augmentation.speed_factors

    def augmented(epoch: int, ranks: int) -> dict[str, list]:
        """Of each clip what was drawn for it, in the order of steps."""
        sets = [
            StepDataset(clips, Batching(4, ranks, 1, 4 // ranks), recipe, tokenizer, EncoderGeometry(), rank)
            for rank in range(ranks)
        ]
        found: dict[str, list] = {clip.id: [] for clip in clips}
        for step in range(epoch * 3, epoch * 3 + 3):
            of_step = []
            for micro in (micro.packed for own in sets for micro in own[step].micro_batches):
                masks = (micro.mel.freq_masks_NM2.tolist(), micro.mel.time_masks_NM2.tolist())
                of_step += zip(micro.clip_ids, micro.samples, *masks, strict=True)
            for identity, *drawn in sorted(of_step, key=str):  # within a step its order is of no account
                found[identity].append(drawn)
        return found

    for epoch in (0, 1):
        found = augmented(epoch, 1)
        assert found == augmented(epoch, 2)
        assert [len(found["own/a"]), len(found["own/b"])] == [3, 3], "6 of 12 turns are of the smaller set"
        for clip in clips:
            seed = clip_seed(recipe.seed, epoch, clip.id)
            samples = perturbed_length(round(clip.duration_s * SAMPLE_RATE_HZ), draw_speed(seed, factors))
            masks = draw_masks(seed, num_frames(samples), spec)
            turns = found[clip.id]
            assert not turns or [samples, masks.freq.tolist(), masks.time.tolist()] in turns
            assert len(set(map(str, turns))) == len(turns), "augmented alike twice"
