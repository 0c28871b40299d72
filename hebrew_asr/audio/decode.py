"""The one way in which sound becomes samples: any container that can be read, to mono 16 kHz float32.

libsndfile (inside the soundfile wheel) reads wav, flac, ogg, opus and mp3 with no system package; soxr resamples. What
telephones and browsers record, m4a and webm, it does not know: torchcodec reads those, where it and FFmpeg are
installed. The first bytes alone decide which of the two reads a file, so that a damaged mp3 gets no second chance to
become noise.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from hebrew_asr.errors import DataError, EnvironmentProblem

SAMPLE_RATE_HZ = 16_000

_HEAD_BYTES = 8
_SHARE_READ = 0.8  # of the length that the container states


def decode(source: str | Path | bytes, *, name: str | None = None) -> np.ndarray:
    """Decode a file or its bytes to mono 16 kHz.

    Args:
        source: path of an audio file, or its whole content.
        name: what to call ``source`` in an error; defaults to the path.

    Returns:
        float32 array of shape (samples,), nominally within [-1, 1].

    Raises:
        DataError: the source is missing, not audio, empty, or holds NaN or infinite samples.
        EnvironmentProblem: it needs torchcodec, which does not work here.
    """
    label = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    try:
        if needs_torchcodec(_head_of(source)):
            samples, rate_hz = _by_torchcodec(source, label)
        else:
            stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
            samples, rate_hz = soundfile.read(stream, dtype="float32", always_2d=True)
    except FileNotFoundError as error:
        raise DataError(f"audio file not found: {label}") from error
    except (soundfile.LibsndfileError, OSError) as error:
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


def needs_torchcodec(head: bytes) -> bool:
    """Whether a file that starts so is m4a or mp4 (ISO 14496-12), or webm (RFC 8794)."""
    return head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"


def _head_of(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with Path(source).open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _by_torchcodec(source: str | Path | bytes, label: str) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) and their rate."""
    try:
        from torchcodec.decoders import AudioDecoder  # type: ignore[import-not-found]  # optional
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: there is no FFmpeg
        raise EnvironmentProblem(
            f"audio {label} is m4a or webm, which needs FFmpeg and the torchcodec package: install both, or convert "
            "such files to flac"
        ) from error
    try:
        decoder = AudioDecoder(source)
        decoded = decoder.get_all_samples()
    except RuntimeError as error:
        raise DataError(f"cannot decode audio {label}: FFmpeg cannot read it. Is it whole?") from error
    stated_s = decoder.metadata.duration_seconds_from_header or 0.0
    if decoded.data.shape[1] < _SHARE_READ * stated_s * decoded.sample_rate:
        raise DataError(f"cannot decode audio {label}: it ends before its {stated_s:.1f} s are over")
    return decoded.data.numpy().T, decoded.sample_rate


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
