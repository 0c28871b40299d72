"""The one way in which sound becomes samples: any container libsndfile reads, to mono 16 kHz float32.

libsndfile (inside the soundfile wheel) reads wav, flac, ogg, opus and mp3 with no system package; soxr resamples.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from hebrew_asr.errors import DataError

SAMPLE_RATE_HZ = 16_000


def decode(source: str | Path | bytes, *, name: str | None = None) -> np.ndarray:
    """Decode a file or its bytes to mono 16 kHz.

    Args:
        source: path of an audio file, or its whole content.
        name: what to call ``source`` in an error; defaults to the path.

    Returns:
        float32 array of shape (samples,), nominally within [-1, 1].

    Raises:
        DataError: the source is missing, not audio, empty, or holds NaN or infinite samples.
    """
    label = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        samples, rate_hz = soundfile.read(stream, dtype="float32", always_2d=True)
    except FileNotFoundError as error:
        raise DataError(f"audio file not found: {label}") from error
    except (soundfile.LibsndfileError, OSError) as error:
        if not isinstance(source, bytes) and not Path(source).exists():
            raise DataError(f"audio file not found: {label}") from error
        raise DataError(
            f"cannot decode audio {label}: {error}. Is it wav, flac, ogg, opus or mp3, and whole?"
        ) from error
    if samples.shape[0] == 0:
        raise DataError(f"audio {label} holds no samples")
    mono = _mean_of_channels(samples)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if not np.isfinite(mono).all():  # the resampler spreads what is not finite, and leaves fewer samples to look at
        raise DataError(f"audio {label} holds NaN or infinite samples")
    return mono


def _mean_of_channels(samples: np.ndarray) -> np.ndarray:
    """(frames, channels) to (frames,). ``mean(axis=1)`` takes ten times as long: its inner loop is one frame."""
    channels = samples.shape[1]
    mono = samples[:, 0]
    for channel in range(1, channels):
        mono = mono + samples[:, channel]
    return mono if channels == 1 else mono / np.float32(channels)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] to int16 with clipping: half the bytes on the way to the device."""
    scaled = samples * np.float32(32768.0)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)
