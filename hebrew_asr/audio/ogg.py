"""The pages of an Ogg file (RFC 3533), and what they say about the length of its sound."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field

from hebrew_asr.audio.containers import places_of
from hebrew_asr.audio.source import Opened

_HEADER_BYTES = 27
_MOST_DRAINED = 5
"""Packets of a last page that may hold nothing but what the encoder's delay has pushed out."""
_LONGEST_PAGE_S = 6
"""255 packets of 20 ms, and then some."""
_START = re.compile(rb"OggS\x00...", re.DOTALL)
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""


@dataclass(slots=True)
class Ogg:
    """What the pages of a file say."""

    codec: bytes = b""
    """First bytes of the first packet."""
    streams: int = 0
    """Logical ones, beside or after each other."""
    links: list[int] = field(default_factory=list)
    """Where each Ogg file begins, of those that were joined to make this one."""
    ends: bool = False
    """The last page is whole and says that it is the last."""
    gaps: bool = False
    """Pages are missing, or there is something between them."""
    missing: bool = False
    """Pages are, by their numbers, of the only stream."""
    lost_beside: int = 0
    """Gaps in the numbers of pages, where several streams lie beside or after each other."""
    disordered: bool = False
    """A page comes again, or late, by its number and its position."""
    damaged: int = 0
    """Whole pages whose checksum is wrong: every decoder leaves them out."""
    falls: bool = False
    """A page with the ends of packets states no later position than one before it."""
    falls_at_end: bool = False
    """The last page is such a one."""
    first_granule: int = 0
    """Position at the end of the first page of sound."""
    last_granule: int = 0

    @property
    def least_s(self) -> float:
        """Seconds that its positions span at least; 0 for other codecs than Opus, Vorbis and FLAC.

        The first page of sound is not counted, which need not begin at zero. Where pages are missing it is.
        """
        if self.codec.startswith(b"OpusHead"):
            rate_hz = 48_000
        elif self.codec.startswith(b"\x01vorbis"):
            rate_hz = int.from_bytes(self.codec[12:16], "little")
        elif self.codec.startswith(b"\x7fFLAC"):
            rate_hz = int.from_bytes(self.codec[27:30], "big") >> 4
        else:
            return 0.0
        is_from_zero = self.missing and self.first_granule < _LONGEST_PAGE_S * rate_hz
        start = 0 if is_from_zero else self.first_granule
        return max(self.last_granule - start, 0) / rate_hz if rate_hz else 0.0


def ogg_pages(source: Opened) -> Ogg:
    """Walk the pages of a file."""
    found = Ogg()
    position, expected, began = 0, 0, False
    following: dict[int, int] = {}  # by stream, where there are several
    while position < source.size:
        page = source.read_at(position, _HEADER_BYTES + 255)
        if page[:4] != b"OggS" or len(page) < _HEADER_BYTES:
            found.gaps = True
            position = _next_page(source, position + 1)
            continue
        start = position
        flags, granule, serial, sequence = struct.unpack_from("<BqII", page, 5)
        segments = page[_HEADER_BYTES : _HEADER_BYTES + page[26]]
        body = position + _HEADER_BYTES + page[26]
        position = body + sum(segments)
        if position <= source.size and not _is_intact(source.read_at(start, position - start)):
            found.damaged += 1
        found.ends = bool(flags & 4) and position <= source.size
        if flags & 2:
            found.streams += 1
            if not began:
                found.links.append(start)
            found.codec = found.codec or source.read_at(body, 40)
        elif found.streams == 1 and sequence != expected:
            found.gaps = found.missing = True
        found.lost_beside += found.streams > 1 and not flags & 2 and sequence > following.get(serial, sequence)
        following[serial] = sequence + 1
        packets = sum(size < 255 for size in segments)
        if sequence < expected:
            found.disordered |= _falls(found, granule, packets, 0)
        found.falls_at_end = _falls(found, granule, packets)
        found.falls |= found.falls_at_end
        began, expected = bool(flags & 2), sequence + 1
        if granule > 0:
            found.first_granule = found.first_granule or granule
            found.last_granule = max(granule, found.last_granule)
    return found


def _falls(before: Ogg, granule: int, packets: int, drained: int = _MOST_DRAINED) -> bool:
    """Whether a page on which so many packets end states no later position than the pages before it."""
    if before.streams != 1 or not before.last_granule or not packets:
        return False
    return granule < before.last_granule or (granule == before.last_granule and packets > drained)


def _is_intact(page: bytes) -> bool:
    """Whether a page has the checksum that it states: a CRC-32 of the highest bit first, as zlib's of turned bits."""
    turned = (page[:22] + bytes(4) + page[26:]).translate(_TURNED)
    checksum = zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[22:26].translate(_TURNED) == checksum.to_bytes(4, "big")


def _next_page(source: Opened, position: int) -> int:
    return next(places_of(source, _START, position), source.size)
