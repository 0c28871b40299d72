"""Frame counts and features against transformers' own extractor and torchaudio's resampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchaudio
from transformers import Qwen3ASRConfig, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from hebrew_asr.audio.augment import Masks, perturbed_length, speed_ratio
from hebrew_asr.audio.frames import EncoderGeometry, num_audio_tokens, num_frames, window_tokens
from hebrew_asr.audio.mel import (
    SINC_KAISER_BETA,
    SINC_ROLLOFF,
    SINC_ZERO_CROSSINGS,
    LogMel,
    MelPlan,
    _plan_resampling,
    _resample,
    plan_mel,
)
from hebrew_asr.errors import CheckpointError
from tests.support.native import features, sound


@dataclass
class Batch:
    waveform_S: torch.Tensor
    mel: MelPlan


def log_mel(clips: list[np.ndarray], speeds: list[float] | None = None, masks: list[Masks] | None = None):
    """One (128, chunks * 100) tensor a clip, all made in one batch."""
    plan = plan_mel([len(clip) for clip in clips], speeds or [1.0] * len(clips), masks)
    chunks = LogMel()(Batch(torch.from_numpy(np.concatenate(clips)), plan))
    counts = plan.first_chunk_N1.diff().tolist()
    return [part.transpose(0, 1).flatten(1) for part in chunks.split(counts)]


def interesting_lengths() -> list[int]:
    """Both sides of every length at which a frame is added, up to 2.5 s: two whole chunks and a half."""
    return sorted({160 * frames + step for frames in range(1, 251) for step in (-1, 0, 1)} | {1, 80, 240})


def test_frames_and_tokens_equal_the_extractor_and_the_processor():
    extractor = Qwen3ASRFeatureExtractor()
    for samples in interesting_lengths():
        mask = extractor(np.zeros(samples, np.float32), sampling_rate=16_000, padding=True, return_attention_mask=True)[
            "attention_mask"
        ]
        assert num_frames(samples) == int(mask.sum()), samples
        expected = int(Qwen3ASRProcessor._get_audio_token_length(None, mask.sum(-1))[0])
        assert num_audio_tokens(num_frames(samples)) == expected, samples


def test_published_geometry():
    assert window_tokens(50, 800) == 104
    assert EncoderGeometry.of(Qwen3ASRConfig().audio_config) == EncoderGeometry(window_tokens=104)
    assert [num_audio_tokens(int(seconds * 100)) for seconds in (0.5, 1, 3, 4.9, 8, 15, 30)] == [
        7, 13, 39, 64, 104, 195, 390,
    ]  # fmt: skip


def test_another_encoder_geometry_is_refused():
    config = Qwen3ASRConfig().audio_config
    config.n_window = 25
    with pytest.raises(CheckpointError, match="chunks of 50 frames"):
        EncoderGeometry.of(config)


def test_each_clip_of_a_batch_equals_the_extractor_on_it_alone():
    clips = [sound(seconds, seed) for seed, seconds in enumerate((0.01, 0.3, 0.5, 1.0, 1.3, 4.9, 8.1, 30.0))]
    clips += [np.zeros(20_000, np.int16), np.full(16_001, -32768, np.int16), np.eye(1, 12_345, 12_344, np.int16)[0]]
    for clip, mine in zip(clips, log_mel(clips), strict=True):
        theirs = features(clip)[0][0]
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 1e-5
        assert not mine[:, num_frames(len(clip)) :].any()


NEAR_THE_FLOOR = 1e-3
"""Absolute, on features. At another speed a band has nothing in it but what the filter leaves, close to the floor of
80 dB below the loudest, where the rounding of fp32 shows."""


@pytest.mark.parametrize("speed", [0.5, 0.9, 0.95, 1.05, 1.1, 2.0])
def test_speed_perturbation_is_torchaudios_resampling(speed: float):
    ratio = speed_ratio(speed)
    clips = [sound(seconds, seed) for seed, seconds in enumerate((0.3, 2.0, 1.7))]
    waves = [torch.from_numpy(clip.astype(np.float32) / 32768.0) for clip in clips]
    speeds = [speed, 1.0, speed]
    expected = [
        torchaudio.functional.resample(
            wave,
            ratio.numerator,
            ratio.denominator,
            lowpass_filter_width=SINC_ZERO_CROSSINGS,
            rolloff=SINC_ROLLOFF,
            resampling_method="sinc_interp_kaiser",
            beta=SINC_KAISER_BETA,
        )
        for wave in waves
    ]
    for mine, theirs in zip(resampled(waves, speed), expected, strict=True):
        assert len(mine) == len(theirs)
        assert (mine - theirs).abs().max() < 2e-6
    for wave, played, factor, mine in zip(waves, expected, speeds, log_mel(clips, speeds), strict=True):
        theirs = features((wave if factor == 1.0 else played).numpy())[0][0]
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < (2e-5 if factor == 1.0 else NEAR_THE_FLOOR)


def resampled(clips: list[torch.Tensor], speed: float) -> list[torch.Tensor]:
    """Clips of one batch, each as it is played."""
    recorded, ratio = torch.cat(clips), speed_ratio(speed)
    first, (plan,) = _plan_resampling(np.array([len(clip) for clip in clips]), [ratio] * len(clips))
    everything = torch.cat([recorded, _resample(recorded, plan)])
    return [everything[start:][: perturbed_length(len(c), speed)] for start, c in zip(first, clips, strict=True)]


def left_db(hz: float, speed: float) -> float:
    """Power of a tone after playing it, in its middle, against what it was."""
    tone = torch.from_numpy(np.sin(2 * np.pi * hz * np.arange(32_000) / 16_000)).float()
    (played,) = resampled([tone], speed)
    return float(10 * torch.log10(played[2000:-2000].square().mean() / tone.square().mean()))


@pytest.mark.parametrize(("speed", "nyquist_hz"), [(1.1, 8000 / 1.1), (1.05, 8000 / 1.05), (2.0, 4000.0)])
def test_what_lies_above_the_new_nyquist_frequency_does_not_fold_back(speed: float, nyquist_hz: float):
    """At 1.1 times the tempo a tone of 7.3 kHz would come back at 7.97 kHz, one of 7.95 kHz at 7.26 kHz."""
    tones = np.linspace(1.004 * nyquist_hz, 7950, 14)
    assert max(left_db(hz, speed) for hz in tones) < -65


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speech_passes_whole(speed: float):
    """Up to 6.3 kHz as recorded."""
    assert all(abs(left_db(hz, speed)) < 0.05 for hz in np.linspace(100, 6300, 14))


def test_faster_is_higher():
    tone = (np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000) * 8000).astype(np.int16)
    slow, same, fast = (mel[:, 40].argmax().item() for mel in log_mel([tone] * 3, [0.9, 1.0, 1.1]))
    assert slow < same < fast


def test_masks_blank_exactly_their_intervals_with_the_clips_mean():
    clips = [sound(1.3, 0), sound(0.7, 1)]
    freq = np.array([[3, 9], [120, 128]], np.int32)
    masks = [
        Masks(freq, np.array([[95, 110], [120, 130]], np.int32)),  # crosses the border of two chunks
        Masks(np.zeros((2, 2), np.int32), np.array([[0, 5], [5, 5]], np.int32)),
    ]
    for clip, mask, plain, masked in zip(clips, masks, log_mel(clips), log_mel(clips, masks=masks), strict=True):
        frames = num_frames(len(clip))
        blank = torch.zeros_like(plain, dtype=torch.bool)
        for first, stop in mask.freq:
            blank[first:stop] = True
        for first, stop in mask.time:
            blank[:, first:stop] = True
        blank[:, frames:] = False
        assert torch.equal(masked[~blank], plain[~blank])
        assert torch.allclose(masked[blank], plain[:, :frames].mean(), atol=1e-6)


def test_features_do_not_depend_on_batch_mates():
    clips = [sound(seconds, seed) for seed, seconds in enumerate((0.9, 2.2, 5.0))]
    masks = [Masks(np.array([[seed, 20]], np.int32), np.array([[seed, 30]], np.int32)) for seed in range(3)]
    together = log_mel(clips, [0.9, 1.1, 0.9], masks)
    alone = [
        log_mel([clip], [speed], [mask])[0] for clip, speed, mask in zip(clips, [0.9, 1.1, 0.9], masks, strict=True)
    ]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=NEAR_THE_FLOOR)
        assert (one - other).abs().median() < 1e-7
