"""Decoding: what libsndfile knows, what torchcodec is asked for, and what neither makes into sound."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode
from hebrew_asr.errors import DataError
from tests.support import corpora


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(channels):
    voices = np.stack([corpora.voice(seed, 0.5, 16_000) for seed in range(channels)], axis=1) / 2
    got = decode(corpora.encode(voices, 16_000, "wav"))
    assert got.dtype == np.float32 and got.shape == (8_000,)
    np.testing.assert_allclose(got, voices.mean(axis=1), atol=1 / 32768)


def test_resampling_keeps_speech_and_lets_nothing_alias():
    seconds = np.arange(44_100) / 44_100
    inner = slice(1_000, -1_000)  # past the filter's ends
    for tone_hz in (100, 1_000, 6_000):
        tone = 0.5 * np.sin(2 * np.pi * tone_hz * seconds)
        wanted = soxr.resample(tone, 44_100, SAMPLE_RATE_HZ, quality="VHQ")
        error = decode(corpora.encode(tone, 44_100, "wav"))[inner] - wanted[inner]
        assert decibels(error) < decibels(wanted) - 80
    for tone_hz in (9_000, 12_000, 20_000):
        tone = 0.5 * np.sin(2 * np.pi * tone_hz * seconds)
        assert decibels(decode(corpora.encode(tone, 44_100, "wav"))[inner]) < -85


def decibels(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(samples**2) + 1e-20))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_what_is_not_finite_is_refused(bad, rate_hz, tmp_path):
    import soundfile

    samples = corpora.voice(1, 0.5, rate_hz).copy()
    samples[100] = bad
    soundfile.write(tmp_path / "x.wav", samples, rate_hz, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN or infinite"):
        decode(tmp_path / "x.wav")


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match="not found"):
        decode(tmp_path / "none.wav")
    for content in (b"", b"junk" * 100):
        with pytest.raises(DataError, match="cannot use audio clip 7"):
            decode(content, name="clip 7")
