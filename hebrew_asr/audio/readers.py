"""Blocks of sound as a file has them, by libsndfile or by FFmpeg, whichever hears all of it.

libsndfile (in the soundfile wheel) takes half of FFmpeg's time for mp3 and reads wav and flac exactly. FFmpeg (in
PyAV's wheel) reads everything else: other containers, joined and streamed files, mp3 whose length libsndfile guesses.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import av
import av.error
import numpy as np
import soundfile

from hebrew_asr.audio.containers import (
    asf_is_live,
    flac_starts,
    flac_total,
    kind_of,
    mp4_starts,
    ogg_pages,
    pcm_files,
    stated_size,
)
from hebrew_asr.audio.mpeg import frames_of
from hebrew_asr.audio.source import AudioError, Opened
from hebrew_asr.errors import first_line

Block = tuple[np.ndarray, int]
"""float32 samples of shape (frames, channels), and how many of them make a second."""

BLOCK_VALUES = 1 << 18
"""Samples of all channels in a block: 1 MiB."""
MOST_CHANNELS = 64
RATES_HZ = (1_000, 768_000)

_FORMATS = (
    "wav,w64,aiff,caf,au,flac,ogg,mp3,aac,loas,mov,matroska,asf,xwma,amr,avi,flv,mpegts,mpeg,ac3,eac3,dts,wv,ape,tta,"
    "tak,mpc,mpc8,voc,nistsphere,ircam,rm,nut,dsf,oma,wtv,mmf,qcp,sox,gsm"
)
"""Files that hold their own sound. FFmpeg's playlists, which name other files, are not read."""
_STATES_LENGTH = {"mov": True, "matroska": True, "asf": True, "wv": False, "tta": False, "ape": False, "dsf": False}
"""Formats that state their length, and whether their packets have times, so that pauses need no packets. Of other
formats FFmpeg gives an estimate."""
_ENCRYPTED_TAGS = {"enca", "drms", "aavd"}
_INTEGERS = {"u8": 128.0, "s16": 32_768.0, "s32": 2_147_483_648.0, "s64": 9_223_372_036_854_775_808.0}
_LOST_SHARE, _LOST_S = 0.02, 0.15
_SHORT_S, _SHORT_SHARE = 0.15, 0.01
_OGG_TOLERANCE_S = 0.1
_LARGEST_PART = 1 << 28


@dataclass(slots=True)
class Reading:
    """One source while it is read."""

    source: Opened
    longest_s: float | None = None
    """No more than this is wanted."""
    cut: str = ""
    """After the last block: how it is seen that sound is missing at the end."""
    lasts_s: float = 0.0
    """Sound that was read so far."""
    _libsndfile: soundfile.SoundFile | None = None

    def libsndfile(self) -> soundfile.SoundFile:
        """The source as libsndfile opens it, once: opening an mp3 takes a sixth of the time of decoding it."""
        if self._libsndfile is None:
            file = self.source.file
            file.seek(0)
            # By its number: soundfile itself refuses a name that is not UTF-8.
            opened = cast(BinaryIO, file) if isinstance(file, io.BytesIO) else file.fileno()
            self._libsndfile = soundfile.SoundFile(opened, closefd=False)
        return self._libsndfile

    def close(self) -> None:
        """Give back what libsndfile holds; the source stays open."""
        if self._libsndfile is not None:
            self._libsndfile.close()
            self._libsndfile = None

    def fault(self, cause: str) -> AudioError:
        return AudioError(self.source.label, cause)

    def check(self, channels: int, rate_hz: int) -> None:
        """Refuse what no recording has, before anything is allocated by it."""
        if not 1 <= channels <= MOST_CHANNELS or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise self.fault(
                f"its header states {channels} channels at {rate_hz} Hz; 1 to {MOST_CHANNELS} at {RATES_HZ[0]} to "
                f"{RATES_HZ[1]} Hz are read"
            )


def blocks_of(reading: Reading) -> Iterator[Block]:
    """The sound of a source from its start to its end; after it ``reading.cut`` is known.

    Raises:
        AudioError: it cannot be decoded.
    """
    with _faults_named(reading):
        plan = _plan_of(reading)
        if len(plan.parts) > 1:
            yield from _joined(plan.parts, reading)
            return
        found = False
        if plan.by_libsndfile:
            try:
                for block in _counted(_by_libsndfile(reading), reading):
                    found = True
                    yield block
            except soundfile.LibsndfileError:
                if found or not plan.else_ffmpeg:
                    raise
        if not plan.by_libsndfile or (plan.else_ffmpeg and not found):
            yield from _counted(_by_ffmpeg(reading), reading)
        reading.cut = reading.cut or plan.cut(reading.lasts_s)


def seconds_of(reading: Reading) -> float:
    """How long a source lasts, without decoding it where its length is certain. Raises as :func:`blocks_of` does."""
    with _faults_named(reading):
        plan = _plan_of(reading)
        try:
            stated_s = plan.lasts_s or (_libsndfile_s(reading) if plan.by_libsndfile and len(plan.parts) < 2 else 0.0)
        except soundfile.LibsndfileError:
            if not plan.else_ffmpeg:
                raise
            stated_s = 0.0
    return stated_s or sum(len(samples) / rate_hz for samples, rate_hz in blocks_of(reading))


def _joined(starts: Sequence[int], reading: Reading) -> Iterator[Block]:
    """Files that were joined, one after the other; they may differ in rate and channels."""
    source = reading.source
    for start, end in zip(starts, [*starts[1:], source.size], strict=True):
        if end - start > _LARGEST_PART:
            raise reading.fault(f"it is several files one after another, of {end - start:,} bytes and less: part them")
        part = Reading(Opened(io.BytesIO(source.read_at(start, end - start)), end - start, source.label))
        if reading.longest_s is not None:
            part.longest_s = max(reading.longest_s - reading.lasts_s, 0.0)
        yield from _counted(blocks_of(part), reading)
        reading.cut = reading.cut or part.cut


@contextmanager
def _faults_named(reading: Reading) -> Generator[None, None, None]:
    if not reading.source.size:
        raise reading.fault("the file is empty")
    try:
        yield
    except AudioError:
        raise
    except soundfile.LibsndfileError as error:
        raise reading.fault(f"{error.error_string} Is it whole?") from error
    except av.error.FFmpegError as error:
        cause = f"it is no sound file that can be read, or a damaged one (FFmpeg: {error.strerror})"
        raise reading.fault(cause) from error
    except Exception as error:  # a decoder may raise anything: MemoryError, ValueError, …
        raise reading.fault(f"{type(error).__name__}: {first_line(error)}") from error
    finally:
        reading.close()


def _counted(blocks: Iterator[Block], reading: Reading) -> Iterator[Block]:
    for samples, rate_hz in blocks:
        reading.lasts_s += len(samples) / rate_hz
        yield samples, rate_hz


@dataclass(frozen=True, slots=True)
class _Plan:
    """Who reads a file."""

    by_libsndfile: bool
    """It would hear all of it."""
    cut: Callable[[float], str] = lambda _lasts_s: ""
    """From the seconds that were decoded: how it is seen that sound is missing at the end, or nothing."""
    else_ffmpeg: bool = False
    """FFmpeg reads it where libsndfile gets nothing out of it."""
    parts: Sequence[int] = ()
    """Where the files begin that were joined to make this one, if there are several: each is read alone."""
    lasts_s: float | None = None
    """What libsndfile would read, where its own header does not say."""


def _plan_of(reading: Reading) -> _Plan:
    return _PLANS[kind_of(reading.source)](reading)


def _pcm(reading: Reading) -> _Plan:
    (starts, end), size = pcm_files(reading.source), reading.source.size
    cut = ""
    if end is not None and end > size + 1:
        cut = f"the file has {size:,} bytes, and by its header sound until byte {end:,}"
    return _Plan(True, lambda _lasts_s: cut, else_ffmpeg=True, parts=starts)  # codecs that libsndfile does not know


def _ogg(reading: Reading) -> _Plan:
    pages = ogg_pages(reading.source)

    def cut(lasts_s: float) -> str:
        if not pages.ends:
            return "its last page is missing"
        if pages.streams == 1 and lasts_s < pages.least_s - _OGG_TOLERANCE_S:
            return f"it states {pages.least_s:.2f} s, and holds {lasts_s:.2f} s"
        return ""

    simple = pages.streams == 1 and not pages.gaps
    return _Plan(simple and pages.codec.startswith((b"OpusHead", b"\x01vorbis")), cut, parts=pages.links)


def _flac(reading: Reading) -> _Plan:
    return _Plan(flac_total(reading.source) > 0, parts=flac_starts(reading.source))


def _mp3(reading: Reading) -> _Plan:
    frames = frames_of(reading.source)
    whole = frames.uniform and abs(_libsndfile_s(reading) - frames.lasts_s) <= 3 * frames.frame_s
    cut = ""
    if frames.is_cut_off:
        cut = f"its tag counts {frames.stated_frames} frames, and it has {frames.frames}"
    lasts_s = frames.lasts_s if whole and frames.stated_frames is None else None
    return _Plan(whole or not frames.frames, lambda _lasts_s: cut, lasts_s=lasts_s)


def _other(reading: Reading) -> _Plan:
    size, stated = reading.source.size, stated_size(reading.source)
    cut = f"the file has {size:,} bytes, and by its header {stated:,}" if stated > size + 1 else ""
    return _Plan(False, lambda _lasts_s: cut, parts=mp4_starts(reading.source))


_PLANS: dict[str, Callable[[Reading], _Plan]] = {
    "pcm": _pcm,
    "flac": _flac,
    "ogg": _ogg,
    "mp3": _mp3,
    "other": _other,
}


def _libsndfile_s(reading: Reading) -> float:
    """How much libsndfile would read: what a tag says, or an estimate; 0 for mp3 in wav, of which it knows nothing."""
    file = reading.libsndfile()
    return 0.0 if file.format.startswith("WAV") and file.subtype.startswith("MPEG") else file.frames / file.samplerate


def _by_libsndfile(reading: Reading) -> Iterator[Block]:
    """Ends at what its header states, or before; the header's length sizes nothing."""
    file = reading.libsndfile()
    reading.check(file.channels, file.samplerate)
    size = max(BLOCK_VALUES // file.channels, 1)
    if reading.longest_s is not None:
        size = min(size, math.floor(reading.longest_s * file.samplerate) + 1)
    while True:
        samples = file.read(size, dtype="float32", always_2d=True)
        if len(samples):
            yield samples, file.samplerate
        if len(samples) < size:
            break


def _by_ffmpeg(reading: Reading) -> Iterator[Block]:
    """Packet by packet; one that cannot be decoded is left out. Many are an error, and the last one is a cut."""
    reading.source.file.seek(0)
    options = {"format_whitelist": _FORMATS}
    with av.open(reading.source.file, "r", options=options, metadata_errors="replace") as container:
        stream = _audio_stream(container, reading)
        stream.codec_context.thread_count = 1
        lost = packets = 0
        broken = False
        end_s = 0.0
        held: list[np.ndarray] = []
        values = rate_hz = 0
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            if not packet.size and broken:
                reading.cut = "its last packet is not whole"
            packets += packet.size > 0  # the empty one at the end only asks for what is left
            try:
                frames, broken = packet.decode(), False
            except av.error.FFmpegError:
                broken = packet.size > 0
                lost += broken
                continue
            for frame in cast(list[av.AudioFrame], frames):
                samples = _samples(frame, reading)
                if held and (frame.sample_rate != rate_hz or samples.shape[1] != held[0].shape[1]):
                    yield np.concatenate(held), rate_hz
                    held, values = [], 0
                rate_hz = frame.sample_rate
                held.append(samples)
                values += samples.size
                if values >= BLOCK_VALUES:
                    yield np.concatenate(held), rate_hz
                    held, values = [], 0
        if held:
            yield np.concatenate(held), rate_hz
        lost_s = lost * reading.lasts_s / max(packets - lost, 1)
        if lost_s > max(_LOST_S, _LOST_SHARE * reading.lasts_s) or lost == packets > 0:
            raise reading.fault(f"{lost} of its {packets} packets of sound cannot be decoded: the file is damaged")
        _compare(container, end_s, reading)


def _audio_stream(container: Any, reading: Reading) -> Any:
    """The default audio stream, or the first."""
    streams = container.streams.audio
    if not streams:
        raise reading.fault("it has no audio track")
    stream = next((s for s in streams if s.disposition & s.disposition.default), streams[0])
    if stream.codec_context is None:
        raise reading.fault("its codec is not known")
    if str(stream.codec_context.codec_tag) in _ENCRYPTED_TAGS:
        raise reading.fault("it is encrypted (DRM)")
    return stream


def _samples(frame: Any, reading: Reading) -> np.ndarray:
    """(frames, channels) float32 within [-1, 1], as libsndfile scales them."""
    channels = frame.layout.nb_channels
    reading.check(channels, frame.sample_rate)
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    full_scale = _INTEGERS.get(frame.format.name.rstrip("p"))
    samples = values.astype(np.float32, order="C")
    if full_scale is None:
        return samples
    if values.dtype == np.uint8:
        samples -= np.float32(full_scale)
    samples /= np.float32(full_scale)
    return samples


def _compare(container: Any, end_s: float, reading: Reading) -> None:
    """Notice a container that goes on for longer, by its header, than its last packet of any track."""
    timed = _STATES_LENGTH.get(container.format.name.split(",")[0])
    if container.duration is None or timed is None or asf_is_live(reading.source):
        return
    stated_s = container.duration / av.time_base
    end_s = end_s - max((container.start_time or 0) / av.time_base, 0.0) if timed else reading.lasts_s
    if end_s and end_s < stated_s - max(_SHORT_S, _SHORT_SHARE * stated_s):
        reading.cut = f"it states {stated_s:.2f} s, and ends after {end_s:.2f} s"
