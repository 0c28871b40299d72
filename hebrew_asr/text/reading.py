"""Text files as people's programs write them: which encoding, which line ends."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

from hebrew_asr.errors import DataError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MOST_BYTES = 2**30


def encoding_of(head: bytes) -> str:
    """What the byte order mark at the start of a file says; ``utf-8`` where there is none."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_text(path: Path, *, pipes: bool = False) -> str:
    """A text file with its lines ended by ``\\n``: UTF-8, or what its byte order mark says (Praat writes UTF-16).

    Args:
        pipes: read a pipe too, to its end; ``<(…)`` of a shell is one.

    Raises:
        DataError: it cannot be read, is larger than 1 GiB, or is in an encoding that it does not name.
    """
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or (pipes and stat.S_ISFIFO(found.st_mode))):
            raise DataError(f"{path} is not a file")
        if found.st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than 1 GiB: is it a text?")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in content and encoding == "utf-8":
            raise DataError(_no_text(path, content)) from error
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} (line {line}): save it as UTF-8; Hebrew from "
            "Windows is converted by `iconv -f CP1255 -t UTF-8`"
        ) from error
    if "\0" in text:
        raise DataError(_no_text(path, content))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_text(path: Path, content: bytes) -> str:
    order = "BE" if content[::2].count(0) > content[1::2].count(0) else "LE"
    return (
        f"{path} holds NUL characters: it is no text, or UTF-16 without a byte order mark, which "
        f"`iconv -f UTF-16{order} -t UTF-8` converts"
    )
