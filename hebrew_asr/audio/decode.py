"""The one way in which sound becomes samples: any container that can be read, to mono 16 kHz float32.

libsndfile (inside the soundfile wheel) reads wav, flac, ogg, opus and mp3 with no system package; soxr resamples. What
telephones and browsers record, m4a and webm, it does not know: torchcodec reads those, where it and FFmpeg are
installed. The first bytes alone decide which of the two reads a file, so that a damaged mp3 gets no second chance to
become noise.
"""

from __future__ import annotations

import io
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from hebrew_asr.errors import DataError, EnvironmentProblem

SAMPLE_RATE_HZ = 16_000

_HEAD_BYTES = 8
_SHARE_READ = 0.8  # of the length that the container states
_EXACT = {b"RIFF", b"RIFX", b"RF64", b"fLaC"}
_EXACT_TOLERANCE_S = 0.02
_CODED_TOLERANCE_S = 0.1
_MORE_S = 0.1  # than allowed, so that a file which is too long is seen to be


def decode(source: str | Path | bytes, *, name: str | None = None, stated_s: float | None = None) -> np.ndarray:
    """Decode a file or its bytes to mono 16 kHz.

    Args:
        source: path of an audio file, or its whole content.
        name: what to call ``source`` in an error; defaults to the path.
        stated_s: how long a manifest says that it lasts. It is not decoded beyond that, so the memory that it takes
            follows from the manifest and not from the file.

    Returns:
        float32 array of shape (samples,), nominally within [-1, 1].

    Raises:
        DataError: the source is missing, not audio, empty, or holds NaN or infinite samples; or its length is not
            within :func:`length_tolerance_s` of what is stated.
        EnvironmentProblem: it needs torchcodec, which does not work here.
    """
    label = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    try:
        head = head_of(source)
        longest_s = None if stated_s is None else stated_s + length_tolerance_s(head)
        read = _by_torchcodec if needs_torchcodec(head) else _by_libsndfile
        samples, rate_hz = read(source, label, longest_s)
    except FileNotFoundError as error:
        raise DataError(f"audio file not found: {label}") from error
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(
            f"cannot decode audio {label}: {error}. Is it wav, flac, ogg, opus or mp3, and whole?"
        ) from error
    if samples.shape[0] == 0:
        raise DataError(f"audio {label} holds no samples")
    if stated_s is not None:
        _check_length(samples.shape[0] / rate_hz, stated_s, length_tolerance_s(head), label)
    mono = _mean_of_channels(samples)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if not np.isfinite(mono).all():  # the resampler spreads what is not finite, and leaves fewer samples to look at
        raise DataError(f"audio {label} holds NaN or infinite samples")
    return mono


def needs_torchcodec(head: bytes) -> bool:
    """Whether a file that starts so is m4a or mp4 (ISO 14496-12), or webm (RFC 8794)."""
    return head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"


def length_tolerance_s(head: bytes) -> float:
    """By how much the stated and the decoded length of a file that starts so may differ.

    Two mel frames (20 ms) for wav and flac, whose length is exact. For what is coded in blocks 0.1 s: decoders disagree
    about a codec's delay and its last block, and a block of an mp3 at 16 kHz lasts 36 ms.
    """
    return _EXACT_TOLERANCE_S if head[:4] in _EXACT else _CODED_TOLERANCE_S


def _check_length(lasts_s: float, stated_s: float, tolerance_s: float, label: str) -> None:
    if lasts_s > stated_s + tolerance_s:
        raise DataError(f"audio {label} lasts longer than the {stated_s:.2f} s that its manifest says")
    if lasts_s < stated_s - tolerance_s:
        raise DataError(f"audio {label} lasts {lasts_s:.2f} s, its manifest says {stated_s:.2f} s")


def head_of(source: str | Path | bytes) -> bytes:
    """The first bytes of a file, by which its kind is known.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with Path(source).open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _by_libsndfile(source: str | Path | bytes, _label: str, longest_s: float | None) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) and their rate; of a longer file one frame more than ``longest_s``."""
    with ExitStack() as opened:
        if isinstance(source, bytes):
            stream: Any = io.BytesIO(source)
        else:  # by its number: soundfile refuses a name that is not UTF-8
            stream = opened.enter_context(Path(source).open("rb")).fileno()
        file = opened.enter_context(soundfile.SoundFile(stream, closefd=False))
        frames = -1 if longest_s is None else math.floor(longest_s * file.samplerate) + 1
        return file.read(frames, dtype="float32", always_2d=True), file.samplerate


def _by_torchcodec(source: str | Path | bytes, label: str, longest_s: float | None) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) and their rate; of a longer file a little more than ``longest_s``."""
    try:
        from torchcodec.decoders import AudioDecoder  # type: ignore[import-not-found]  # optional
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: there is no FFmpeg
        raise EnvironmentProblem(
            f"audio {label} is m4a or webm, which needs FFmpeg and the torchcodec package: install both, or convert "
            "such files to flac"
        ) from error
    try:
        decoder = AudioDecoder(source)
        if longest_s is None:
            decoded = decoder.get_all_samples()
        else:
            decoded = decoder.get_samples_played_in_range(0.0, longest_s + _MORE_S)
    except RuntimeError as error:
        raise DataError(f"cannot decode audio {label}: FFmpeg cannot read it. Is it whole?") from error
    stated_s = min(decoder.metadata.duration_seconds_from_header or 0.0, longest_s or math.inf)
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
