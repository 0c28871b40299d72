"""Blocks of sound as FFmpeg reads them, which comes with PyAV's wheel."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import av
import av.error
import numpy as np

from hebrew_asr.audio.containers import is_live
from hebrew_asr.audio.reading import BLOCK_VALUES, Block, Reading
from hebrew_asr.audio.unreadable import what_it_is
from hebrew_asr.languages import is_hebrew

_FORMATS = (
    "wav,w64,aiff,caf,au,flac,ogg,mp3,aac,loas,mov,matroska,asf,xwma,amr,avi,flv,mpegts,mpeg,ac3,eac3,dts,wv,ape,tta,"
    "tak,mpc,mpc8,voc,nistsphere,ircam,rm,nut,dsf,oma,wtv,mmf,qcp,sox,gsm,mxf"
)
"""Files that hold their own sound. FFmpeg's playlists, which name other files, are not read."""
_STATES_LENGTH = {"mov": True, "matroska": True, "asf": True, "wv": False, "tta": False, "ape": False, "dsf": False}
"""Formats that state their length, and whether their packets have times, so that pauses need no packets. Of other
formats FFmpeg gives an estimate."""
_SPLICED = ("mpegts", "mpeg")
"""Formats whose times jump where broadcasts were joined or cut: as for FFmpeg, 10 s or a jump back are no pause."""
_PAUSES_IN = ("mov", "matroska", "asf", "flv", "nut", *_SPLICED)
"""Formats whose times tell of pauses: a recorder that was muted, packets that were lost."""
_PAUSE_S, _SPLICE_S, _LONGEST_PAUSE_S = 0.1, 10.0, 3600.0
_ENCRYPTED_TAGS = {"enca", "drms", "aavd"}
_INTEGERS = {"u8": 128.0, "s16": 32_768.0, "s32": 2_147_483_648.0, "s64": 9_223_372_036_854_775_808.0}
_MOST_PLANES = 7
"""PyAV looks for the end of eight planes or more where nothing marks it, and reads from wherever that points."""
_LOST_SHARE, _LOST_S = 0.02, 0.15
_HOLE_S = 0.02
"""Less than a frame of flac, by whose numbers it is seen that FFmpeg took a damaged one for a part of the next."""
_SHORT_S, _SHORT_SHARE = 0.15, 0.01


def blocks_by_ffmpeg(reading: Reading) -> Iterator[Block]:
    """The sound of a source from its start to its end; after it ``reading.cut`` says what FFmpeg saw missing.

    Raises:
        AudioError: it cannot be decoded.
    """
    try:
        yield from _blocks(reading)
    except av.error.FFmpegError as error:
        known = what_it_is(reading.source)
        why = f": {known}" if known else f", or a damaged one (FFmpeg: {error.strerror})"
        raise reading.fault(f"it is no sound file that can be read{why}") from error


def _blocks(reading: Reading) -> Iterator[Block]:
    """Packet by packet; one that cannot be decoded is left out. Many are an error, and the last one is a cut.

    Of flac, which libsndfile would not read on either, one is an error.
    """
    reading.source.file.seek(0)
    options = {"format_whitelist": _FORMATS}
    with av.open(reading.source.file, "r", options=options, metadata_errors="replace") as container:
        stream = _audio_stream(container, reading)
        decoder, clock = _decoder(stream.codec_context), _Clock(reading, *_timeline(container))
        lost = packets = corrupt = 0
        broken, early = False, cast("int | None", None)
        begin_s, end_s = math.inf, 0.0
        held: list[np.ndarray] = []
        values = rate_hz = 0
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                begin_s = min(begin_s, float(packet.pts * packet.time_base))
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            corrupt += packet.is_corrupt
            if not packet.size and broken:
                reading.cut = "its last packet is not whole"
            packets += packet.size > 0  # the empty one at the end only asks for what is left
            try:
                frames = decoder.decode(packet if packet.size else None)
                broken = decoder.name == "flac" and packet.size > 0 and not frames
            except av.error.FFmpegError:
                frames, broken = [], packet.size > 0
            lost += broken
            for frame in cast(list[av.AudioFrame], frames):
                samples = _samples(frame, reading)
                early = _early_frames(container, stream) if early is None else early
                samples, early = samples[early:], max(early - len(samples), 0)
                for part in clock.with_pause(frame, samples):
                    if held and (frame.sample_rate != rate_hz or part.shape[1] != held[0].shape[1]):
                        yield np.concatenate(held), rate_hz
                        held, values = [], 0
                    rate_hz = frame.sample_rate
                    held.append(part)
                    values += part.size
                    if values >= BLOCK_VALUES:
                        yield np.concatenate(held), rate_hz
                        held, values = [], 0
        if held:
            yield np.concatenate(held), rate_hz
        numbered_s = end_s - begin_s if container.format.name == "flac" else 0.0
        _require_most(packets, lost, numbered_s, decoder.name == "flac", reading)
        _compare(container, begin_s, end_s, reading)
        if corrupt and clock.paused_s:
            reading.cut = f"packets of it are missing by their counters, of {clock.paused_s:.2f} s in all"


@dataclass(slots=True)
class _Clock:
    """Puts silence where the times of a container leave a pause, as players do: texts with times go by those."""

    reading: Reading
    tells_pauses: bool
    zero_s: float | None
    """Where the sound begins by those times; None for at its first frame."""
    is_spliced: bool
    """Its times may jump: from there on they count anew."""
    heard_s: float = 0.0
    """Since then, with pauses."""
    end_s: float | None = None
    """Of the last frame, by its own time."""
    paused_s: float = 0.0
    """In all, behind the first frame."""

    def with_pause(self, frame: av.AudioFrame, samples: np.ndarray) -> Iterator[np.ndarray]:
        """What comes before a frame, a second at a time, and its samples. Raises AudioError for a mad time."""
        lasts_s = frame.samples / frame.sample_rate
        if self.tells_pauses and frame.pts is not None and frame.time_base:
            begin_s = float(frame.pts * frame.time_base)
            self.zero_s = begin_s if self.zero_s is None else self.zero_s
            if self.is_spliced and self.end_s is not None and not -1.0 < begin_s - self.end_s < _SPLICE_S:
                self.zero_s = self.end_s = begin_s
                self.heard_s = 0.0
            # Not longer than what is missing in all: recorders catch up with what they stamped too late.
            pause_s = min(
                begin_s - (self.zero_s if self.end_s is None else self.end_s), begin_s - self.zero_s - self.heard_s
            )
            if pause_s > _LONGEST_PAUSE_S:
                raise self.reading.fault(
                    f"its times jump by {pause_s:,.0f} s after {self.heard_s:.2f} s: write it anew"
                )
            left = round(pause_s * frame.sample_rate) if pause_s >= _PAUSE_S else 0
            self.heard_s += left / frame.sample_rate
            self.paused_s += 0.0 if self.end_s is None else left / frame.sample_rate
            self.end_s = begin_s
            while left > 0:
                yield np.zeros((min(left, frame.sample_rate), samples.shape[1]), np.float32)
                left -= frame.sample_rate
        self.heard_s += lasts_s
        self.end_s = None if self.end_s is None else self.end_s + lasts_s
        yield samples


def _timeline(container: Any) -> tuple[bool, float | None, bool]:
    """Whether its times tell of pauses, where they begin if there is more than sound in it, and whether they jump."""
    beside = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    zero_s = container.start_time / av.time_base if beside and container.start_time is not None else None
    name = container.format.name.split(",")[0]
    return name in _PAUSES_IN, zero_s, name in _SPLICED


def _require_most(packets: int, lost: int, numbered_s: float, is_flac: bool, reading: Reading) -> None:
    """Refuse a file of which too much cannot be decoded. ``numbered_s``: its length by the numbers of its frames."""
    lost_s = lost * reading.lasts_s / max(packets - lost, 1)
    if lost == packets > 0:
        raise reading.fault(
            f"none of its {packets} packets of sound can be decoded: damage, or a coding that FFmpeg does not know"
        )
    if lost > bool(reading.cut) if is_flac else lost_s > max(_LOST_S, _LOST_SHARE * reading.lasts_s):
        raise reading.fault(f"{lost} of its {packets} packets of sound cannot be decoded: the file is damaged")
    if not reading.cut and reading.lasts_s < numbered_s - _HOLE_S:
        raise reading.fault(f"of {numbered_s:.2f} s only {reading.lasts_s:.2f} s can be decoded: the file is damaged")


def _audio_stream(container: Any, reading: Reading) -> Any:
    """The audio stream in Hebrew, the default one, or the first."""
    streams = container.streams.audio
    if not streams:
        raise reading.fault("it has no audio track")
    hebrew = [s for s in streams if is_hebrew(s.language)]
    stream = next((s for s in hebrew or streams if s.disposition & s.disposition.default), (hebrew or streams)[0])
    if stream.codec_context is None:
        raise reading.fault("its codec is not known")
    if _tag(stream.codec_context) in _ENCRYPTED_TAGS:
        raise reading.fault("it is encrypted (DRM)")
    return stream


def _early_frames(container: Any, stream: Any) -> int:
    """Frames of the coder's delay that FFmpeg leaves in: where HE-AAC has no edit list but iTunSMPB alone.

    That counts at the rate before it is doubled, and FFmpeg takes its number for one of the doubled rate.
    """
    said = container.metadata.get("iTunSMPB", "").split()[1:4]
    if len(said) < 3 or not container.start_time or not all(re.fullmatch("[0-9A-Fa-f]+", number) for number in said):
        return 0
    delay, *others = (int(number, 16) for number in said)
    counted = delay + sum(others)
    return delay if stream.frames * stream.codec_context.frame_size == 2 * counted else 0


def _tag(context: Any) -> str:
    """Four letters by which its container calls a codec; none where that is a number, as 0xFF for AAC in avi."""
    try:
        return str(context.codec_tag)
    except UnicodeDecodeError:
        return ""


def _decoder(context: Any) -> Any:
    """What decodes a stream. FFmpeg's own decoders of AMR leave out the pauses that a telephone sends no sound for."""
    decoder = context
    if context.name in ("amrnb", "amrwb"):
        decoder = cast(Any, av.CodecContext.create(f"libopencore_{context.name}", "r"))
        decoder.sample_rate, decoder.layout = context.sample_rate, "mono"
    if context.name == "flac":  # no frame comes of a packet with a wrong checksum then, and noise else
        decoder.options = {"err_detect": "crccheck+explode"}
    decoder.thread_count = 1
    return decoder


def _samples(frame: Any, reading: Reading) -> np.ndarray:
    """(frames, channels) float32 within [-1, 1], as libsndfile scales them."""
    channels = frame.layout.nb_channels
    reading.check(channels, frame.sample_rate)
    if frame.format.is_planar and channels > _MOST_PLANES:
        (frame,) = av.AudioResampler(frame.format.packed).resample(frame)
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


def _compare(container: Any, begin_s: float, end_s: float, reading: Reading) -> None:
    """Notice a container that goes on for longer, by its header, than its last packet of any track."""
    name = container.format.name.split(",")[0]
    timed = _STATES_LENGTH.get(name)
    if container.duration is None or timed is None or is_live(reading.source):
        return
    stated_s = container.duration / av.time_base
    # What iTunSMPB counts as the coder's delay is added to the start that is told, and not taken from the length.
    start_s = max(min((container.start_time or 0) / av.time_base, begin_s), 0.0)
    # A last packet may not say how long it lasts.
    end_s = max(end_s, start_s + reading.lasts_s) if timed else reading.lasts_s
    if name == "mov":  # FFmpeg tells its length since its first sound, and that of others since zero
        end_s -= start_s
    if end_s and end_s < stated_s - max(_SHORT_S, _SHORT_SHARE * stated_s):
        reading.cut = f"it states {stated_s:.2f} s, and ends after {end_s:.2f} s"
