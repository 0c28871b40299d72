"""One sound in the containers and encodings that people bring, made with FFmpeg (PyAV) and libsndfile."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from tests.support import corpora

LASTS_S = 3.0
_NO_TAG = {"write_xing": "0"}


class Pipe(io.RawIOBase):
    """What an encoder writes to when it writes to a pipe: it cannot go back to fill in lengths."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: Any) -> int:
        self.content += bytes(data)
        return len(bytes(data))

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def by_ffmpeg(
    samples: np.ndarray,
    rate_hz: int,
    container: str,
    codec: str,
    *,
    piped: bool = False,
    bit_rate: int | None = None,
    tracks: int = 1,
    delay_s: float = 0.0,
    sample_format: str | None = None,
    muxer: dict[str, str] | None = None,
    **encoder: str,
) -> bytes:
    """Encode samples, (frames,) or (frames, channels). Further tracks hold silence. ``delay_s``: when they begin."""
    folder = tempfile.TemporaryDirectory()
    out: Any = Pipe() if piped else str(Path(folder.name) / "x")  # by name: FFmpeg moves an index by reading it again
    layout = "mono" if samples.ndim == 1 else {2: "stereo", 6: "5.1", 8: "7.1"}[samples.shape[1]]
    packed = samples.astype(np.float32).reshape(1, -1)
    with folder, av.open(out, "w", format=container, options=muxer or {}) as file:
        streams = []
        for _ in range(tracks):
            stream = file.add_stream(codec, rate=rate_hz, layout=layout, options=encoder)
            if bit_rate:
                stream.bit_rate = bit_rate
            if sample_format:
                stream.codec_context.format = av.AudioFormat(sample_format)
            stream.codec_context.open()
            streams.append(stream)
        for number, stream in enumerate(streams):
            context = stream.codec_context
            frame = av.AudioFrame.from_ndarray(packed * (number == 0), format="flt", layout=layout)
            frame.rate, frame.pts = rate_hz, round(delay_s * rate_hz)
            resampler = av.AudioResampler(context.format, layout, rate_hz, frame_size=context.frame_size or 1024)
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                if part is not None and not part.samples:
                    continue
                file.mux(stream.encode(part))
        file.close()
        return bytes(out.content) if piped else Path(out).read_bytes()


def by_libsndfile(samples: np.ndarray, rate_hz: int, container: str, subtype: str, **options: Any) -> bytes:
    """Encode samples, (frames,) or (frames, channels)."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate_hz, format=container, subtype=subtype, **options)
    return out.getvalue()


def with_lengths(wav: bytes, riff: int | None, data: int | None) -> bytes:
    """A wav whose length fields say something else."""
    changed = bytearray(wav)
    if riff is not None:
        struct.pack_into("<I", changed, 4, riff)
    if data is not None:
        struct.pack_into("<I", changed, changed.index(b"data") + 4, data)
    return bytes(changed)


def _ffmpeg(container: str, codec: str, rate_hz: int = 16_000, **options: Any) -> Callable[[], bytes]:
    return cache(lambda: by_ffmpeg(voice(rate_hz), rate_hz, container, codec, **options))


def _libsndfile(container: str, subtype: str, rate_hz: int = 16_000, **options: Any) -> Callable[[], bytes]:
    return cache(lambda: by_libsndfile(voice(rate_hz), rate_hz, container, subtype, **options))


def _streamed_wav(riff: int | None, data: int | None) -> Callable[[], bytes]:
    return lambda: with_lengths(by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16"), riff, data)


def _live_aiff(aiff: bytes) -> bytes:
    """With the lengths that sox writes before it knows them: of 0x7f000000 bytes of sound."""
    changed, frames, sound = bytearray(aiff), aiff.index(b"COMM") + 10, aiff.index(b"SSND") + 4
    for at, length in ((4, 0x7F00_0050), (frames, 0x3F80_0000), (sound, 0x7F00_0008)):
        struct.pack_into(">I", changed, at, length)
    return bytes(changed)


def _with_wide_header(w64: bytes) -> bytes:
    """With the format as WAVEFORMATEXTENSIBLE says it, as FFmpeg 5 wrote it."""
    at = w64.index(b"fmt ")
    size = int.from_bytes(w64[at + 16 : at + 24], "little")
    tag, shape, bits = w64[at + 24 : at + 26], w64[at + 26 : at + 38], w64[at + 38 : at + 40]
    guid = tag + bytes.fromhex("000000001000800000aa00389b71")
    wide = b"\xfe\xff" + shape + bits + struct.pack("<H", 22) + bits + struct.pack("<I", 4) + guid
    return w64[: at + 16] + struct.pack("<Q", 24 + len(wide)) + wide + w64[at + -(-size // 8) * 8 :]


def voice(rate_hz: int) -> np.ndarray:
    """The sound, float32 of shape (samples,); the same at every rate, but for the noise in it."""
    return corpora.voice(3, LASTS_S, rate_hz)


EXACT: dict[str, Callable[[], bytes]] = {
    "wav 16 bit": _libsndfile("WAV", "PCM_16"),
    "wav 24 bit": _libsndfile("WAV", "PCM_24"),
    "wav 32 bit": _libsndfile("WAV", "PCM_32"),
    "wav float": _libsndfile("WAV", "FLOAT"),
    "wav double": _libsndfile("WAV", "DOUBLE"),
    "wav big-endian": _libsndfile("WAV", "PCM_16", endian="BIG"),
    "wav extensible": _libsndfile("WAVEX", "PCM_24"),
    "rf64": _libsndfile("RF64", "PCM_16"),
    "w64": _libsndfile("W64", "PCM_16"),
    "w64 float": lambda: _with_wide_header(by_ffmpeg(voice(16_000), 16_000, "w64", "pcm_f32le")),
    "w64 32 bit": _ffmpeg("w64", "pcm_s32le"),
    "aiff": _libsndfile("AIFF", "PCM_16"),
    "aifc float": _libsndfile("AIFF", "FLOAT"),
    "au": _libsndfile("AU", "PCM_16"),
    "caf": _libsndfile("CAF", "PCM_16"),
    "caf alac": _libsndfile("CAF", "ALAC_16"),
    "flac": _libsndfile("FLAC", "PCM_16"),
    "wav from sox's pipe": _streamed_wav(0x7FFFF024, 0x7FFFF000),
    "wav from a pipe, ones": _streamed_wav(0xFFFFFFFF, 0xFFFFFFFF),
    "wav from a pipe, zeros": _streamed_wav(0, 0),
    "wav from arecord's pipe": _streamed_wav(0x80000024, 0x80000000),
    "wav from FFmpeg's pipe": _ffmpeg("wav", "pcm_s16le", piped=True),
    "rf64 from FFmpeg's pipe": _ffmpeg("wav", "pcm_s16le", piped=True, muxer={"rf64": "always"}),
    "aiff from sox's pipe": lambda: _live_aiff(by_libsndfile(voice(16_000), 16_000, "AIFF", "PCM_16")),
    "aiff from a pipe": _ffmpeg("aiff", "pcm_s16be", piped=True),
    "au from a pipe": _ffmpeg("au", "pcm_s16be", piped=True),
    "caf from a pipe": _ffmpeg("caf", "pcm_s16le", piped=True),
    "flac from a pipe": _ffmpeg("flac", "flac", piped=True),
    "flac in ogg": _ffmpeg("ogg", "flac"),
    "flac in mkv": _ffmpeg("matroska", "flac"),
    "flac in a live mkv": _ffmpeg("matroska", "flac", piped=True),
    "flac in mp4": _ffmpeg("mp4", "flac"),
    "alac": _ffmpeg("ipod", "alac"),
    "mov": _ffmpeg("mov", "pcm_s16le"),
    "avi": _ffmpeg("avi", "pcm_s16le"),
    "wavpack": _ffmpeg("wv", "wavpack", sample_format="s16p"),
    "true audio": _ffmpeg("tta", "tta", sample_format="s16"),
}
"""Bit for bit the same, but for the last bit of an integer."""

CODED: dict[str, tuple[Callable[[], bytes], float]] = {
    "wav 8 bit": (_libsndfile("WAV", "PCM_U8"), 0.0),
    "wav u-law": (_libsndfile("WAV", "ULAW"), 0.0),
    "wav A-law": (_libsndfile("WAV", "ALAW"), 0.0),
    "wav IMA ADPCM": (_libsndfile("WAV", "IMA_ADPCM"), 0.064),
    "wav MS ADPCM": (_libsndfile("WAV", "MS_ADPCM"), 0.064),
    "wav GSM": (_libsndfile("WAV", "GSM610", 8_000), 0.04),
    "mp3": (_libsndfile("MP3", "MPEG_LAYER_III", 44_100), 0.0),
    "mp3 16 kHz": (_libsndfile("MP3", "MPEG_LAYER_III"), 0.0),
    "mp3 in wav": (_ffmpeg("wav", "libmp3lame", 44_100), 0.06),
    "mp3 vbr from a pipe": (
        _ffmpeg("mp3", "libmp3lame", 44_100, piped=True, muxer=_NO_TAG, global_quality="472", flags="+qscale"),
        0.06,
    ),
    "mp3 cbr from a pipe": (_ffmpeg("mp3", "libmp3lame", 44_100, piped=True, muxer=_NO_TAG), 0.06),
    "mp2": (_ffmpeg("mp2", "mp2", 44_100), 0.06),
    "vorbis": (_libsndfile("OGG", "VORBIS", 44_100), 0.0),
    "opus": (_libsndfile("OGG", "OPUS", 48_000), 0.0),
    "opus in webm": (_ffmpeg("webm", "libopus", 48_000), 0.02),
    "opus in a live webm": (_ffmpeg("webm", "libopus", 48_000, piped=True), 0.02),
    "m4a": (_ffmpeg("ipod", "aac", 44_100), 0.05),
    "m4a, index first": (_ffmpeg("ipod", "aac", 44_100, muxer={"movflags": "faststart"}), 0.05),
    "mp4 in fragments": (
        _ffmpeg("mp4", "aac", 44_100, piped=True, muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        0.05,
    ),
    "aac in mkv": (_ffmpeg("matroska", "aac", 44_100), 0.05),
    "aac": (_ffmpeg("adts", "aac", 44_100), 0.1),
    "aac in mpegts": (_ffmpeg("mpegts", "aac", 44_100), 0.1),
    "aac in avi": (_ffmpeg("avi", "aac", 44_100), 0.1),
    "aac in flv": (_ffmpeg("flv", "aac", 44_100), 0.1),
    "wma": (_ffmpeg("asf", "wmav2", 44_100, bit_rate=128_000), 0.06),
    "wma from a pipe": (_ffmpeg("asf", "wmav2", 44_100, bit_rate=64_000, piped=True), 0.06),
    "amr": (_ffmpeg("amr", "libopencore_amrnb", 8_000), 0.04),
    "3gp": (_ffmpeg("3gp", "libopencore_amrnb", 8_000), 0.04),
    "ac3": (_ffmpeg("ac3", "ac3", 44_100), 0.04),
}
"""Much the same, and longer or shorter by at most so many seconds: one block of the codec, with its delay."""
