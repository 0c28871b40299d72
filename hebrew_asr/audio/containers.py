"""What kind of file it is, by its first bytes, and what the container itself says about the length of its sound."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hebrew_asr.audio.mpeg import id3_size, is_mpeg
from hebrew_asr.audio.source import AudioError, Opened

Kind = Literal["pcm", "flac", "ogg", "mp3", "other"]
"""``pcm``: wav, w64, aiff, au and caf, whatever they hold. ``other``: for FFmpeg to find out."""

_MOST_CHUNKS = 10_000
_PLACEHOLDER = 0x7EFFF000
"""Lengths from here on, 0 and all ones are what sox and others write to a pipe: it was not known yet."""
_W64_HEADER_BYTES = 24
_ASF, _ASF_PROPERTIES = b"\x30\x26\xb2\x75", bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD_BYTES = 1 << 16
_EBML, _MATROSKA_INFO, _MATROSKA_INFO_BYTES = b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", 1 << 12
_MATROSKA_DURATION = re.compile(rb"\x44\x89(\x84.{4}|\x88.{8})", re.DOTALL)
"""RFC 9559, 5.1.2.10: a float of four or eight bytes. Zero says that it is not known."""
_CHUNK_BYTES = 1 << 18
_AFTER_BYTES = 1 << 10
_TAG = re.compile(rb".?(?:[\x20-\x7e]{4}|ID3|TAG)", re.DOTALL)
_PADDING_BYTES = 7
_PCM = re.compile(
    rb"(?:RIFF|RIFX|RF64|BW64)....WAVE|FORM....AIF[FC]|\.snd|caff\x00\x01|riff\x2e\x91\xcf\x11", re.DOTALL
)
_AFTER_TAGS = re.compile(rb"(?:RIFF|RIFX|RF64|BW64|FORM|OggS|\.snd|caff|riff|\x1a\x45\xdf\xa3|....ftyp)", re.DOTALL)
_MP4_FIRST = b"ftyp"
_FIRST = {
    b"FLV\x01": re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0"),
    b"TTA1": re.compile(rb"TTA1[\x01\x03]\0.\0", re.DOTALL),
    _ASF: re.compile(re.escape(bytes.fromhex("3026b2758e66cf11"))),
}
"""What begins a file of which FFmpeg would hear the first alone if several were joined."""
_MP3_TAG_AFTER_JUNK = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]..[\x00-\xff]{9,34}(?:Xing|Info)", re.DOTALL)
_JUNK_BYTES = 1 << 16
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_START_BYTES = 8
"""Of what begins a file or a page."""
_FLAC_TAILS_BYTES = 1 << 14, 1 << 17
"""The last frame of most files is in the shorter one."""
_FLAC_LEAST_HEADER_BYTES, _FLAC_HEADER_BYTES = 6, 16
_CRC8_OF_BYTES = list(range(256))
"""Polynomial x^8 + x^2 + x + 1 (RFC 9639, 9.1.8)."""
for _ in range(8):
    _CRC8_OF_BYTES = [(crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1 for crc in _CRC8_OF_BYTES]
_FLAC_AHEAD_BYTES = 1 << 14
_FLAC_FRAME_BYTES, _FLAC_FRAME_SAMPLES = 10, 65_535
"""The least bytes that a frame has, and the most samples of a channel (RFC 9639, 9)."""


def kind_of(source: Opened) -> Kind:
    """What a file is."""
    head = source.read_at(0, 16)
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return "pcm" if head[8:12] == b"WAVE" else "other"
    if head[:4] == b"FORM":
        return "pcm" if head[8:12] in (b"AIFF", b"AIFC") else "other"
    if head[:4] in (b"riff", b"caff", b".snd"):
        return "pcm"
    position = 0
    while tag := id3_size(head):
        position += tag
        head = source.read_at(position, 16)
    if head[:4] == b"fLaC":
        return "flac"
    if is_mpeg(head) or _MP3_TAG_AFTER_JUNK.search(source.read_at(position, _JUNK_BYTES)):
        return "mp3"
    return "other"


def pcm_files(source: Opened) -> tuple[list[int], int | None]:
    """Where each wav, w64, aiff, au or caf file begins of those that were joined to make this one, usually one.

    And the byte at which the sound of the last ends by its own count; None where it does not say.

    Raises:
        AudioError: after the sound of the last there are more samples, which no reader hears.
    """
    starts = [0]
    while len(starts) < _MOST_CHUNKS:
        file = source.since(starts[-1]) if starts[-1] else source
        end = _pcm_end(file)
        if end is None:
            return starts, None
        following = _next_pcm(file, end)
        if following is None:
            if file.read_at(0, 4) != b"riff":  # w64 names its chunks by numbers
                _require_all(file, end)
            return starts, starts[-1] + end
        starts.append(starts[-1] + following)
    raise AudioError(source.label, f"it is more than {_MOST_CHUNKS:,} files one after another")


def _next_pcm(source: Opened, position: int) -> int | None:
    """Where another such file begins, if one does: after what a file has after its sound, chunks and a few zeros."""
    order: Literal["big", "little"] = "big" if source.read_at(0, 4) in (b"RIFX", b"FORM") else "little"
    for _ in range(_MOST_CHUNKS):
        after = source.read_at(position, _PADDING_BYTES + 16)
        padding = min(len(after) - len(after.lstrip(b"\0")), _PADDING_BYTES)
        after, position = after[padding:], position + padding
        if _PCM.match(after):
            return position
        if after[:4] in (b"data", b"SSND"):
            raise AudioError(source.label, "it holds several stretches of samples, of which readers hear one")
        if len(after) < 8 or not _TAG.match(after):
            return None
        position += 8 + int.from_bytes(after[4:8], order)
    return None


def _pcm_end(source: Opened) -> int | None:
    """Byte at which the sound ends by its container's own count; None where it does not say."""
    head = source.read_at(0, 16)
    if head[:4] == b".snd":
        found = struct.unpack_from(">II", head.ljust(12, b"\0"), 4)
    elif head[:4] == b"caff":
        found = _chunk(source, 8, b"data", ">4sq", 0, 1)
    elif head[:4] == b"riff":
        found = _chunk(source, 40, b"data", "<4s12xq", -_W64_HEADER_BYTES, 8)
    else:
        order, name = (">", b"SSND") if head[:4] == b"FORM" else ("<", b"data")
        found = _chunk(source, 12, name, (">" if head[:4] == b"RIFX" else order) + "4sI", 0, 2)
        if head[:4] in (b"RF64", b"BW64") and found and found[1] == 0xFFFFFFFF:
            found = found[0], struct.unpack_from("<Q", source.read_at(28, 8).ljust(8, b"\xff"))[0]
    if found is None or _unknown(found[1], source.size):
        return None
    return found[0] + found[1]


def _require_all(source: Opened, end: int) -> None:
    """Refuse a file that has more sound after what its header counts: zeros, chunks and tags are none."""
    after = source.read_at(end, _AFTER_BYTES)
    # Every chunk and tag begins with letters, after a byte of padding or none. A few bytes are no sound to speak of.
    if len(after) == _AFTER_BYTES and any(after) and not _TAG.match(after):
        raise AudioError(
            source.label, f"its header counts sound until byte {end:,}, but the file goes on until {source.size:,}"
        )


def _unknown(length: int, size: int) -> bool:
    return length <= 0 or length in (0xFFFFFFFF, 2**63 - 1) or (length >= _PLACEHOLDER and size < length // 2)


def _chunk(source: Opened, position: int, name: bytes, layout: str, more: int, align: int) -> tuple[int, int] | None:
    """Where the sound's chunk has its content, and how long it is said to be. ``more`` is added to every length."""
    header_bytes = struct.calcsize(layout)
    for _ in range(_MOST_CHUNKS):
        header = source.read_at(position, header_bytes)
        if len(header) < header_bytes:
            return None
        identity, length = struct.unpack(layout, header)
        length += more
        if identity == name:
            return position + header_bytes, length
        if length < 0:
            return None
        position += header_bytes + -(-length // align) * align
    return None


def stated_size(source: Opened) -> int:
    """Bytes that an avi or ASF (wma) file has by its own header; 0 for other files, and where it does not say."""
    head = source.read_at(0, _ASF_HEAD_BYTES)
    stated = 0
    if head[:4] == b"RIFF":
        stated = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == _ASF and (at := head.find(_ASF_PROPERTIES)) >= 0:
        stated = int.from_bytes(head[at + 40 : at + 48], "little")
    return 0 if _unknown(stated, source.size) else stated


def is_live(source: Opened) -> bool:
    """Whether it is an ASF (wma) or Matroska (webm) file whose header does not say how long it lasts.

    FFmpeg tells a guess then, by the bit rate of its tracks.
    """
    head = source.read_at(0, _ASF_HEAD_BYTES)
    if head[:4] == _ASF:
        at = head.find(_ASF_PROPERTIES)
        return at >= 0 and bool(head[at + 88 : at + 89] and head[at + 88] & 1)
    info = head.find(_MATROSKA_INFO)
    if head[:4] != _EBML or info < 0:
        return False
    duration = _MATROSKA_DURATION.search(head, info, info + _MATROSKA_INFO_BYTES)
    return duration is None or not any(duration[1][1:])


def tags_before(source: Opened) -> int:
    """Bytes of ID3 tags before a container that has no place for them there: 0 where there are none."""
    start = _flac_begins(source)
    return start if start and _AFTER_TAGS.match(source.read_at(start, 8)) else 0


def joined_starts(source: Opened) -> list[int]:
    """Where each file begins, of those that were joined to make one that FFmpeg would hear the first of."""
    pattern = _FIRST.get(source.read_at(0, 4))
    return list(places_of(source, pattern, 0)) if pattern else mp4_starts(source)


def mp4_starts(source: Opened) -> list[int]:
    """Where each mp4, mov or m4a file begins, of those that were joined to make this one (ISO 14496-12, 4.2)."""
    starts: list[int] = []
    position = 0
    for _ in range(_MOST_CHUNKS if source.read_at(4, 4) == _MP4_FIRST else 0):
        header = source.read_at(position, 16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # its length is too large for the field, and follows
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # the box goes on to the end of the file, or this is none
            break
        if header[4:8] == _MP4_FIRST:
            starts.append(position)
        position += size
    return starts


@dataclass(frozen=True, slots=True)
class FlacLength:
    """What a FLAC file says about its length, in samples of a channel."""

    rate_hz: int
    stated: int
    """By its header. 0 where the encoder did not know, where a file of this size cannot hold so many, and where frames
    follow after so many."""
    held: int
    """By the last frame that is found; -1 for none."""


def flac_length(source: Opened) -> FlacLength:
    """By the stream info block (RFC 9639, 8.2) and the end of the file."""
    info = source.read_at(_flac_begins(source) + 8, 18).ljust(18, b"\0")
    total = int.from_bytes(info[10:], "big") & (1 << 36) - 1
    possible = total <= source.size // _FLAC_FRAME_BYTES * _FLAC_FRAME_SAMPLES
    begins, ends = _last_flac_frame(source, int.from_bytes(info[:2], "big"))
    return FlacLength(int.from_bytes(info[10:13], "big") >> 4, total if possible and begins < total else 0, ends)


def _flac_begins(source: Opened) -> int:
    """Where ``fLaC`` stands, after tags that some programs put before it."""
    start = 0
    while tag := id3_size(source.read_at(start, 10)):
        start += tag
    return start


def _last_flac_frame(source: Opened, block_samples: int) -> tuple[int, int]:
    """The samples at which the last frame found near the end begins and ends; -1 for none (RFC 9639, 9.1)."""
    for tail_bytes in _FLAC_TAILS_BYTES:
        tail = source.read_at(max(source.size - tail_bytes, 0), tail_bytes)
        at = len(tail)
        while (at := tail.rfind(b"\xff", 0, at)) >= 0:
            if found := _flac_frame(tail[at : at + _FLAC_HEADER_BYTES]):
                number, is_sample, samples = found
                begins = number if is_sample else number * block_samples
                return begins, begins + samples
    return -1, -1


def _flac_frame(head: bytes) -> tuple[int, bool, int] | None:
    """Of a frame that starts so: its number, whether that is a sample's or else the frame's, and its samples."""
    if len(head) < _FLAC_LEAST_HEADER_BYTES or head[1] not in (0xF8, 0xF9):
        return None
    if head[2] < 16 or head[2] & 15 == 15 or head[3] > 0xAF or head[3] & 1 or head[3] & 14 == 6:
        return None  # reserved: in noise bytes look like a header often enough that one file of 4,000 was misread
    length = max(8 - (head[4] ^ 0xFF).bit_length(), 1)  # of the number, coded as UTF-8 codes letters
    sized = {6: 1, 7: 2}.get(head[2] >> 4, 0)
    end = 4 + length + sized + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    is_coded = head[4] >> 6 != 2 and all(byte >> 6 == 2 for byte in head[5 : 4 + length])
    if not is_coded or length > 7 or end >= len(head) or _crc8(head[:end]) != head[end]:
        return None
    number = head[4] & (0x7F if length == 1 else 0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    size = head[2] >> 4  # a power of two, 192, 576 times one, or written out
    samples = 1 << size if size > 7 else 192 if size == 1 else 144 << size
    if sized:
        samples = int.from_bytes(head[4 + length : 4 + length + sized], "big") + 1
    return number, head[1] == 0xF9, samples


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc = _CRC8_OF_BYTES[crc ^ byte]
    return crc


def flac_starts(source: Opened) -> list[int]:
    """Where each FLAC file begins, of those that were joined to make this one (RFC 9639, 6)."""
    return list(places_of(source, _FLAC_START, 0))


def flac_starts_after(source: Opened, read: int) -> list[int]:
    """The same but for the first, where libFLAC has read so many bytes to hear that: it reads ahead by 8 KiB."""
    first, position = _flac_begins(source), max(min(read, source.size) - _FLAC_AHEAD_BYTES, 0)
    return [start for start in places_of(source, _FLAC_START, position) if start > first]


def places_of(source: Opened, start: re.Pattern[bytes], position: int) -> Iterator[int]:
    """Where files or pages start so, from ``position`` on."""
    while position < source.size:
        chunk = source.read_at(position, _CHUNK_BYTES)
        yield from (position + found.start() for found in start.finditer(chunk))
        if len(chunk) < _CHUNK_BYTES:
            return
        position += len(chunk) - _START_BYTES + 1
