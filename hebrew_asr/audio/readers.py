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

import soundfile

from hebrew_asr.audio.containers import (
    flac_length,
    flac_starts,
    flac_starts_after,
    joined_starts,
    kind_of,
    pcm_files,
    stated_size,
    tags_before,
)
from hebrew_asr.audio.mpeg import frames_of
from hebrew_asr.audio.ogg import ogg_pages
from hebrew_asr.audio.reading import BLOCK_VALUES, Block, Reading
from hebrew_asr.audio.source import AudioError, Opened
from hebrew_asr.errors import first_line

_OGG_TOLERANCE_S = 0.1
_FLAC_TOLERANCE_S = 0.02
_LARGEST_PART = 1 << 28
_NO_LENGTH = 1 << 60
"""Samples of an Opus file whose only page of sound ends before the coder's delay does, as libsndfile counts them."""
_MISREAD = {("WAV", "GSM610"), ("W64", "GSM610"), ("W64", "PCM_32")}
"""By libsndfile: it hears a byte of padding as a block of noise, and takes floats for integers. Of mp3 in wav it takes
the length from the rate of the first frames."""
_MISCOUNTED_BYTES = 64
"""Some writers count the header among the samples: that is no sound missing."""


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
            if more := plan.more(reading.source.file.tell()):
                yield from _joined(more, reading)
        if not plan.by_libsndfile or (plan.else_ffmpeg and not found):
            from hebrew_asr.audio.ffmpeg import blocks_by_ffmpeg  # a tenth of a second, which most files do without

            yield from _counted(blocks_by_ffmpeg(reading), reading)
        reading.cut = plan.cut(reading.lasts_s) or ("" if plan.ends_whole else reading.cut)


def seconds_of(reading: Reading) -> float:
    """How long a source lasts, without decoding it where its length is certain. Raises as :func:`blocks_of` does."""
    with _faults_named(reading):
        plan = _plan_of(reading)
        alone = plan.by_libsndfile and len(plan.parts) < 2 and not plan.more(0)
        try:
            stated_s = plan.lasts_s or (_libsndfile_s(reading) if alone else 0.0)
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
        part = Reading(_in_memory(source, start, end))
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
    more: Callable[[int], Sequence[int]] = lambda _read: ()
    """From the bytes that libsndfile has read: where files begin after the one that it hears."""
    ends_whole: bool = False
    """Its last frame is whole: what FFmpeg cannot decode after it is a tag."""
    lasts_s: float | None = None
    """What libsndfile would read, where its own header does not say."""


def _plan_of(reading: Reading) -> _Plan:
    return _PLANS[kind_of(reading.source)](reading)


def _pcm(reading: Reading) -> _Plan:
    if _is_live_rf64(reading.source):  # all readers hear nothing then, and of a wav of unknown length all
        reading.source = _in_memory(reading.source, 4, reading.source.size, begun=b"RIFF")
    (starts, end), size = pcm_files(reading.source), reading.source.size
    cut = ""
    if end is not None and end > size + _MISCOUNTED_BYTES:
        cut = f"the file has {size:,} bytes, and by its header sound until byte {end:,}"
    try:
        container, coding = reading.libsndfile().format, reading.libsndfile().subtype
    except soundfile.LibsndfileError:  # a codec that it does not know
        return _Plan(False, lambda _lasts_s: cut, parts=starts)
    by_libsndfile = not coding.startswith("MPEG") and (container, coding) not in _MISREAD
    padded = coding == "GSM610"  # some count the byte of padding, which is no block that could be cut
    return _Plan(by_libsndfile, lambda _lasts_s: cut, else_ffmpeg=True, parts=starts, ends_whole=padded)


def _is_live_rf64(source: Opened) -> bool:
    """Whether an RF64 file of moderate size counts no sound: its length was not known when its start was written."""
    head = source.read_at(0, 36)
    return head[:4] == b"RF64" and head[12:16] == b"ds64" and not any(head[28:]) and source.size < _LARGEST_PART


def _ogg(reading: Reading) -> _Plan:
    pages = ogg_pages(reading.source)
    if pages.disordered:
        raise reading.fault("some of its pages come twice, or not in their order")

    def cut(lasts_s: float) -> str:
        if not pages.ends:
            return "its last page is missing"
        if pages.damaged:
            return f"{pages.damaged} of its pages have a wrong checksum, and their sound is not heard"
        if pages.lost_beside:
            return "some of its pages are missing"
        if is_opus and pages.falls_at_end:
            return "its last page states no later end than the page before it, and is not heard"
        if pages.streams == 1 and lasts_s < pages.least_s - _OGG_TOLERANCE_S:
            return f"it states {pages.least_s:.2f} s, and holds {lasts_s:.2f} s"
        return ""

    is_opus = pages.codec.startswith(b"OpusHead")
    simple = pages.streams == 1 and pages.ends and not (pages.gaps or pages.falls)
    return _Plan(simple and (is_opus or pages.codec.startswith(b"\x01vorbis")), cut, parts=pages.links)


def _flac(reading: Reading) -> _Plan:
    source, length = reading.source, flac_length(reading.source)
    if 0 < length.stated <= length.held or length.held < 0 < length.stated:
        # The search takes 3 % of the time of decoding: only what was not read is looked through.
        return _Plan(True, more=lambda read: flac_starts_after(source, read))

    def cut(lasts_s: float) -> str:
        stated_s = length.stated / (length.rate_hz or 1)
        if lasts_s >= stated_s - _FLAC_TOLERANCE_S:
            return ""
        said = f"its header states {stated_s:.2f} s, and {lasts_s:.2f} s are heard"
        return f"{said}; if that is all of it, write the file anew (ffmpeg -i FILE NEW.flac)"

    return _Plan(False, cut, parts=flac_starts(source))


def _mp3(reading: Reading) -> _Plan:
    frames = frames_of(reading.source)
    if frames.hides_sound:
        reading.source = _without_start(
            reading, frames.sound_at, "its LAME tag leaves out more sound than encoders add"
        )
    counts_all = frames.hides_sound or frames.stated_frames is None or frames.frames <= frames.stated_frames
    try:
        whole = frames.uniform and counts_all and abs(_libsndfile_s(reading) - frames.lasts_s) <= 3 * frames.frame_s
    except soundfile.LibsndfileError:  # it looks for the first frame in the first kilobytes only
        whole = False
    cut = ""
    if frames.is_cut_off:
        cut = f"its tag counts {frames.stated_frames} frames, and it has {frames.frames}"
    lasts_s = frames.lasts_s if whole and (frames.hides_sound or frames.stated_frames is None) else None
    return _Plan(whole or not frames.frames, lambda _lasts_s: cut, lasts_s=lasts_s, ends_whole=frames.ends_whole)


def _without_start(reading: Reading, start: int, fault: str) -> Opened:
    """The source without a tag that would hide sound: without one, all is heard."""
    source = reading.source
    if source.size > _LARGEST_PART:
        raise reading.fault(f"{fault}: write the file anew")
    return _in_memory(source, start, source.size)


def _in_memory(source: Opened, start: int, end: int, begun: bytes = b"") -> Opened:
    """Bytes ``start`` to ``end`` of a source as one of its own; ``begun``: what it begins with before them."""
    content = begun + source.read_at(start, end - start)
    return Opened(io.BytesIO(content), len(content), source.label)


def _other(reading: Reading) -> _Plan:
    if start := tags_before(reading.source):
        reading.source = _without_start(reading, start, "it begins with an ID3 tag, which no file of its kind does")
        return _plan_of(reading)
    size, stated = reading.source.size, stated_size(reading.source)
    cut = f"the file has {size:,} bytes, and by its header {stated:,}" if stated > size + 1 else ""
    return _Plan(False, lambda _lasts_s: cut, parts=joined_starts(reading.source))


_PLANS: dict[str, Callable[[Reading], _Plan]] = {
    "pcm": _pcm,
    "flac": _flac,
    "ogg": _ogg,
    "mp3": _mp3,
    "other": _other,
}


def _libsndfile_s(reading: Reading) -> float:
    """How much libsndfile would read: what a tag says, or an estimate."""
    file = reading.libsndfile()
    return file.frames / file.samplerate if file.frames < _NO_LENGTH else 0.0


def _by_libsndfile(reading: Reading) -> Iterator[Block]:
    """Ends at what its header states, or before; the header's length sizes nothing."""
    file = reading.libsndfile()
    reading.check(file.channels, file.samplerate)
    size = max(BLOCK_VALUES // file.channels, 1)
    if reading.longest_s is not None:  # of files that were joined, nothing may be wanted of a later one: it is counted
        size = min(size, math.floor(max(reading.longest_s, 1.0) * file.samplerate) + 1)
    while True:
        samples = file.read(size, dtype="float32", always_2d=True)
        if len(samples):
            yield samples, file.samplerate
        if len(samples) < size:
            break
