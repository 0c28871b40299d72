"""How much sound an mp3 file holds, by its frame headers (ISO 11172-3, 2.4.1.3; ISO 13818-3).

A decoder that takes the length from a tag or from the first frames' bit rate stops early where the bit rate varies and
there is no tag, or where files were joined. Counting the frames takes 1 % of the time of decoding them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import product

from hebrew_asr.audio.source import Opened

_CHUNK_BYTES = 1 << 20
_NEED_BYTES = 64  # at a frame: its header, and where its tag is
_TAG_BYTES = 256
_MOST_DELAY, _MOST_PADDING = 1152, 576
"""Samples that encoders put before the sound (LAME 576, older ones 1,105), and after it beside those of one frame."""
_KBIT = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    samples: int
    """In a frame, of one channel."""
    rate_hz: int
    sizes: dict[bytes, int] = field(default_factory=dict)
    """Bytes of a frame by the first three bytes of its header."""

    @property
    def frame_s(self) -> float:
        return self.samples / self.rate_hz


@dataclass(slots=True)
class _Run:
    """Frames of one kind, end to end."""

    kind: _Kind
    mono: bool
    frames: int = 0
    is_cut: bool = False
    """The file ends in the frame after them."""


@cache  # not when this module is loaded: it takes 10 ms, and many a process reads no mp3
def _headers() -> dict[bytes, tuple[int, _Kind]]:
    """Second and third byte of every possible header, with the bytes of its frame and its kind."""
    found = {}
    kind_of = cache(_Kind)  # one object for each kind: they are compared by identity
    for version, layer, protected, bits, rate, padding, private in product(
        (0, 2, 3), (1, 2, 3), (0, 1), range(1, 15), range(3), (0, 1), (0, 1)
    ):
        rate_hz = _RATES_HZ[version][rate]
        generation = 1 if version == 3 else 2
        kbit = _KBIT[generation, layer][bits - 1]
        samples = 384 if layer == 1 else 576 if (layer, generation) == (3, 2) else 1152
        slot = 4 if layer == 1 else 1
        size = (samples // 8 // slot * kbit * 1000 // rate_hz + padding) * slot
        second = 0xE0 | version << 3 | (4 - layer) << 1 | protected
        header, kind = bytes((second, bits << 4 | rate << 2 | padding << 1 | private)), kind_of(samples, rate_hz)
        kind.sizes[b"\xff" + header] = size
        found[header] = size, kind
    return found


@dataclass(frozen=True, slots=True)
class Mpeg:
    """What the frames of a file say."""

    frames: int = 0
    """Whole ones, without the frame that only holds a tag."""
    lasts_s: float = 0.0
    """Of all of them, with the encoder's delay and padding."""
    frame_s: float = 0.0
    """Of the longest frame."""
    uniform: bool = True
    """One rate and number of channels, and nothing between the frames."""
    stated_frames: int | None = None
    """By the tag of the first frame (Xing, Info or VBRI)."""
    ends_whole: bool = False
    """There are frames, and the last one is whole; tags may follow it."""
    sound_at: int = 0
    """Byte at which the frame after the tag begins."""
    hides_sound: bool = False
    """The tag has decoders leave out more at the start or the end than any encoder adds there."""

    @property
    def is_cut_off(self) -> bool:
        """Whether frames are missing that the tag counts; encoders disagree by one or two."""
        return self.stated_frames is not None and self.frames < self.stated_frames - max(3, self.stated_frames // 100)


def is_mpeg(head: bytes) -> bool:
    """Whether these bytes begin a frame. AAC in ADTS, which looks alike, has no layer."""
    return head[:1] == b"\xff" and head[1:3] in _headers()


def id3_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that starts so, or 0."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size + (10 if head[5] & 0x10 else 0)


class _Window:
    """A file in memory a megabyte at a time."""

    def __init__(self, source: Opened):
        self.source, self.start, self.bytes = source, 0, b""

    def at(self, position: int) -> int:
        """Index into ``bytes`` of a position in the file, followed by what a frame's start needs."""
        index = position - self.start
        if index < 0 or index + _NEED_BYTES > len(self.bytes):
            self.start, self.bytes = position, self.source.read_at(position, _CHUNK_BYTES)
            return 0
        return index


def frames_of(source: Opened) -> Mpeg:
    """Count the frames of a file."""
    window, position = _Window(source), 0
    runs: list[_Run] = []
    stated: int | None = None
    broken = between = cut = hides = False
    sound_at = 0
    while position + 4 <= source.size:
        index = window.at(position)
        header = _headers().get(window.bytes[index + 1 : index + 3]) if window.bytes[index] == 0xFF else None
        if header is None:
            broken = bool(runs)
            position = _next_frame(window, position)
            continue
        between |= broken
        broken = False
        if not runs and stated is None and (stated := _stated(window.bytes[index : index + _NEED_BYTES])):
            hides = _hides_sound(source.read_at(position, _TAG_BYTES), header[1])
            position = sound_at = position + header[0]
            continue
        run = _Run(header[1], window.bytes[index + 3] >= 0xC0)
        position = _follow(window, position, run)
        cut |= run.is_cut
        if not run.frames:  # the last one, which is not whole
            break
        runs.append(run)
    return Mpeg(
        frames=sum(run.frames for run in runs),
        lasts_s=sum(run.frames * run.kind.frame_s for run in runs),
        frame_s=max((run.kind.frame_s for run in runs), default=0.0),
        uniform=not between and len({(run.kind, run.mono) for run in runs}) <= 1,
        stated_frames=stated,
        ends_whole=bool(runs) and not cut,
        sound_at=sound_at,
        hides_sound=hides,
    )


def _follow(window: _Window, position: int, run: _Run) -> int:
    """Count frames of one kind that lie end to end; returns where they end."""
    size_of, mono, size = run.kind.sizes.get, run.mono, window.source.size
    frames = 0
    while position + 4 <= size:
        index = window.at(position)
        content, start = window.bytes, window.start
        last, end = len(content) - _NEED_BYTES, size - start
        if content[index : index + 3] in run.kind.sizes and index < last:
            alike, index = _of_one_rate(content, index, last, run)
            frames += alike
        while True:
            frame_bytes = size_of(content[index : index + 3])
            if frame_bytes is None or (content[index + 3] >= 0xC0) != mono:
                run.frames = frames
                return start + index
            if index + frame_bytes > end:
                run.frames, run.is_cut = frames, True
                return start + index if frames == 0 else size
            index += frame_bytes
            frames += 1
            if index > last:
                break
        position = start + index
    run.frames = frames
    return position


def _of_one_rate(content: bytes, index: int, last: int, run: _Run) -> tuple[int, int]:
    """Count the frames from here on that have one bit rate, in a sixth of the time; and say where they end."""
    pattern, least_bytes = _frames_like(content[index : index + 3], run.mono, run.kind)
    frames = 0
    while (found := pattern.match(content, index, last)) and found.end() > index:
        frames += (found.end() - index) // least_bytes  # no more of them than their padding together is less than one
        index = found.end()
    return frames, index


@cache
def _frames_like(header: bytes, mono: bool, kind: _Kind) -> tuple[re.Pattern[bytes], int]:
    """What matches frames that differ by their padding alone, some hundreds at most, and the bytes of one without."""
    plain = header[:2] + bytes((header[2] & 0xFD,))
    padded = header[:2] + bytes((header[2] | 0x02,))
    channels = b"[\xc0-\xff]" if mono else b"[\x00-\xbf]"
    sizes = kind.sizes
    either = b"|".join(re.escape(start) + channels + b".{%d}" % (sizes[start] - 4) for start in (plain, padded))
    most = (sizes[plain] - 1) // (sizes[padded] - sizes[plain])
    # Not possessive, as `{0,n}+` would be: Python before 3.11.5 ends such a match too early.
    return re.compile(b"(?:%b){0,%d}" % (either, most), re.DOTALL), sizes[plain]


def _next_frame(window: _Window, position: int) -> int:
    """Where the next frame starts that another one of its kind follows; the end of the file if there is none.

    There is none at ``position`` itself, unless there is a tag.
    """
    size, looked = window.source.size, 1
    while position + 4 <= size:
        index = window.at(position)
        content = window.bytes
        if tag := id3_size(content[index : index + 10]):
            position, looked = position + tag, 0
            continue
        index = content.find(b"\xff", index + looked)
        looked = 1
        if index < 0:
            position = window.start + len(content)
            continue
        position = window.start + index
        header = _headers().get(window.source.read_at(position, 3)[1:3])
        if header is None:
            continue
        after = window.source.read_at(position + header[0], 3)
        follower = _headers().get(after[1:3]) if after[:1] == b"\xff" else None
        if follower is not None and follower[1] is header[1]:
            return position
    return size


def _stated(frame: bytes) -> int | None:
    """Frames that the tag of a first frame counts; None where it has no tag, or one that does not count."""
    for name, offset, flag in ((b"Xing", 8, 7), (b"Info", 8, 7), (b"VBRI", 14, None)):
        at = frame.find(name)
        if at >= 4 and (flag is None or (frame[at + flag : at + flag + 1][:1] and frame[at + flag] & 1)):
            return int.from_bytes(frame[at + offset : at + offset + 4], "big") or None
    return None


def _hides_sound(frame: bytes, kind: _Kind) -> bool:
    """Whether a tag counts more delay or padding than an encoder adds, as LAME's extension of Xing's tag can."""
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0:
        return False
    flags = frame[at + 7]
    at += 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    both = int.from_bytes(frame[at + 21 : at + 24], "big")
    return both >> 12 > _MOST_DELAY or both & 0xFFF > _MOST_PADDING + kind.samples
