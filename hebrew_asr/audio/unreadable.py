"""What a file is that no decoder reads, and what its owner can do about it."""

from __future__ import annotations

import re

from hebrew_asr.audio.source import Opened

_HEAD_BYTES = 1 << 16
_KINDS = tuple(
    (re.compile(begins, re.DOTALL | re.IGNORECASE), what)
    for begins, what in (
        (rb"\x1f\x8b|BZh\d|\xfd7zXZ|PK\x03\x04|Rar!\x1a|7z\xbc\xaf", "it is packed: unpack it"),
        (rb"version https://git-lfs", "it is Git LFS' pointer to the file: `git lfs pull` fetches that"),
        (rb"\s*\{\s*\"audio", "it is a list of recordings, which `hebrew-asr eval --data` reads"),
        (rb"\s*(?:<!doctype|<html|<\?xml|\{\s*\")", "it is a page or an answer of a server: download the file again"),
        (rb"%PDF|\x89PNG|\xff\xd8\xff|GIF8", "it is a document or a picture"),
        (rb"(?:data:[\w/;=-]+,)?[A-Za-z0-9+/\r\n]{512}", "it is written in base64: `base64 -d` turns it into the file"),
    )
)
_BEGINS = re.compile(rb"(?<=.)(?:RIFF....WAVE|FORM....AIF[FC]|fLaC\0\0\0\x22|OggS\0\x02\0{8}|\0\0\0.ftyp)", re.DOTALL)
_REPLACED, _MOST_REPLACED = b"\xef\xbf\xbd", 200
"""What UTF-8 has in place of bytes that are no text."""


def what_it_is(source: Opened) -> str:
    """What is known of a file that cannot be read, or nothing."""
    head = source.read_at(0, _HEAD_BYTES)
    if head.count(_REPLACED) > _MOST_REPLACED:
        return "it was saved as a text, in which its sound is lost: copy the recording again, as binary"
    if known := next((what for begins, what in _KINDS if begins.match(head)), ""):
        return known
    if head[4:8] == b"ftyp":
        return (
            "its index (moov), which is written last, is missing or damaged: it was not recorded or copied to its end"
        )
    if found := _BEGINS.search(head):
        return f"a file of sound begins at its byte {found.start()}: `tail -c +{found.start() + 1}` leaves that alone"
    zeros = "it begins with zeros, as what was not downloaded to its end: download it again"
    return "" if head[:512].strip(b"\0") else zeros
