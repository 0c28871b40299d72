"""Convert one unit of rows: text, audio, filters, files. Runs in worker processes."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import wave
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from hebrew_asr.audio.decode import LONGEST_S, SAMPLE_RATE_HZ, decode, quiet_decoders, to_int16
from hebrew_asr.audio.source import AudioError, TooLong
from hebrew_asr.corpus.preparation.crashes import rows_noted
from hebrew_asr.corpus.preparation.filters import audio_fault, length_fault, pace_fault, text_fault
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record, part_path, write_part
from hebrew_asr.corpus.preparation.recut import recut
from hebrew_asr.files import atomic
from hebrew_asr.sources import PUBLIC_TEST_SOURCES, Row, Unit, unit_name
from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.timestamps import parse_timestamps

_FLAC_FASTEST = 0.0  # libFLAC level 0: 2 % larger than its default here, and 10 % faster
_MORE_S = 0.1
_CLOCK_TOLERANCE_S = 0.5
"""A last stretch may be stated to end this much after its audio: people round to whole or half seconds."""
_MOST_AHEAD_BYTES = 1 << 22
FLAC_MD5 = slice(26, 42)  # of the file: the MD5 of the samples, last field of the stream info block (RFC 9639)


@dataclass(frozen=True, slots=True)
class UnitSummary:
    """What a finished unit adds to the progress bar."""

    rows: int
    clips: int
    seconds: float


def convert_unit(unit: Unit, options: PrepareOptions, folder: Path, work: Path) -> UnitSummary:
    """Write the clips of a unit and then its part under ``work``; done again, it does the same.

    Clips become files under ``folder/clips``; those that belong into shards wait in one file for all of the unit.

    Raises:
        DataError: the source itself cannot be read. A row that is wrong is a dropped clip, not an error.
        OSError: the disk is full or not writable.
    """
    records: list[Record] = []
    rows = 0
    with quiet_decoders(), _keeping(unit, options, folder, work) as keep:
        for position, row in rows_noted(unit, work):
            rows += 1
            content, made = _ahead.pop((unit_name(unit), position), (None, ()))
            if content is None or content != _content_of(row, options):
                made = convert_row(row, unit, position, options)
            for record, encoded in made:
                if encoded is not None:
                    keep(record, encoded)
                records.append(record)
    write_part(part_path(work, unit_name(unit)), records)
    kept = [record.duration_s for record in records if record.fate == "kept"]
    return UnitSummary(rows, len(kept), sum(kept))


_ahead: dict[tuple[str, int], tuple[object, Iterable[tuple[Record, bytes | None]]]] = {}
"""What was made of rows before their units came, by unit and position, each with what it was made of."""


def convert_ahead(row: Row, unit: Unit, position: int, options: PrepareOptions) -> list[bytes]:
    """The encoded clips of a row; :func:`convert_unit` takes them over if the same process comes to the same row."""
    made = list(convert_row(row, unit, position, options))
    encoded = [content for _, content in made if content is not None]
    held = sum(len(content) for _, others in _ahead.values() for _, content in others if content)
    if held + sum(map(len, encoded)) < _MOST_AHEAD_BYTES:
        _ahead[unit_name(unit), position] = _content_of(row, options), made
    return encoded


def _content_of(row: Row, options: PrepareOptions) -> object:
    """What differs where a row would become something else: a process may outlive a source or a folder."""
    return hash(row), isinstance(row.audio, str) and _changed_ns(row.audio), repr(options)


@contextmanager
def _keeping(
    unit: Unit, options: PrepareOptions, folder: Path, work: Path
) -> Generator[Callable[[Record, bytes], object], None, None]:
    """What puts the sound of a clip where it is kept."""
    if options.store == "files":
        (folder / "clips" / unit.dataset / f"{unit.shard:05d}").mkdir(parents=True, exist_ok=True)
        own = f"{os.getpid()}{secrets.randbelow(10**9):09d}" if options.workers_on else ""
        yield lambda record, encoded: _write_clip(f"{folder}/{record.audio}", encoded, own)
        return
    path = work / "sounds" / f"{unit_name(unit)}.flac"
    with atomic(path) as stream:

        def keep(record: Record, encoded: bytes) -> None:
            record.held, record.offset_bytes = path.relative_to(folder).as_posix(), stream.tell()
            stream.write(encoded)

        yield keep


def _write_clip(path: str, encoded: bytes, own: str) -> None:
    """On a cluster it is whole at any moment: a worker that was given up may still write what another has written.

    ``own``: digits that no other writer has, where there may be one.
    """
    folder, _, name = path.rpartition("/")
    written = f"{folder}/.{name}.{own}.tmp" if own else path
    with open(written, "wb") as file:  # not by objects of pathlib, which take half as long as the writing
        file.write(encoded)
    if own:
        os.replace(written, path)  # noqa: PTH105


def convert_row(row: Row, unit: Unit, position: int, options: PrepareOptions) -> Iterator[tuple[Record, bytes | None]]:
    """Yield the record of every clip of a row, with its encoded audio when it is kept."""
    blank = Record(
        "dropped", f"{unit.dataset}/{row.id}", unit.shard, position, groups=_groups_of(row, unit), retake=row.retake
    )
    if row.problem:
        blank.reason, blank.detail = row.problem
        yield blank, None
        return
    if unit.held_out or any(f"source:{name}" in row.groups for name in PUBLIC_TEST_SOURCES):
        yield _held_out(row, blank), None
        return
    # Segments are normalized one by one further on; joined here, so that an empty recording is noticed at once.
    blank.transcript = normalize(row.text, "target")
    blank.reason = text_fault(row, blank.transcript, options) or ""
    if blank.reason:
        yield blank, None
        return
    try:
        samples = _heard(row, blank.id, options)
    except AudioError as error:
        blank.reason, blank.detail = error.reason, error.cause
        blank.duration_s = round(error.lasts_s, 4) if isinstance(error, TooLong) else 0.0
        yield blank, None
        return
    blank.duration_s = _seconds(samples)
    blank.reason, blank.detail = audio_fault(row, samples) or ("", "")
    if not blank.reason and row.span_s:
        samples = _stretch(samples, row.span_s, blank)
    if blank.reason:
        yield blank, None
    elif row.timed or row.timing:
        yield from _recut_row(row, blank, samples, unit, options)
    else:
        yield _finish(blank, samples, length_fault(blank.duration_s, blank.transcript, options), unit, "", options)


def _groups_of(row: Row, unit: Unit) -> tuple[str, ...]:
    """A row's groups; a recording's name is its dataset's own, other names may mean the same in several of them."""
    return tuple(group.replace("recording:", f"recording:{unit.dataset}/", 1) for group in row.groups)


def _heard(row: Row, name: str, options: PrepareOptions) -> np.ndarray:
    """A row's samples. Stretches of one file follow each other, so the last file of which some were cut is kept."""
    if row.span_s and isinstance(row.audio, str):
        return _last_file(row.audio, _changed_ns(row.audio))
    # What exactly is too long, to a sample, ``length_fault`` says.
    longest_s = LONGEST_S if row.timed or row.timing else options.max_duration_s + _MORE_S
    return decode(row.audio, name=name, longest_s=longest_s)


@lru_cache(maxsize=1)
def _last_file(path: str, _changed_ns: int) -> np.ndarray:
    return decode(path, name=Path(path).name, longest_s=LONGEST_S)


def _changed_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except (OSError, ValueError):  # for the decoder to tell; ValueError: a NUL in its name
        return 0


def _held_out(row: Row, blank: Record) -> Record:
    """A public test recording: only what others may not share with it. Its filters are its owner's business."""
    blank.fate, blank.reason = "held out", "public test set"
    blank.transcript = normalize(row.text, "target")
    blank.words = normalize(row.text, "strict")
    try:
        samples = decode(row.audio, name=blank.id)
    except AudioError as error:
        blank.detail = error.cause  # the text still counts
        return blank
    blank.duration_s = _seconds(samples)
    blank.fingerprint = fingerprint(to_int16(samples), b"", "wav")
    return blank


def _recut_row(
    row: Row, blank: Record, samples: np.ndarray, unit: Unit, options: PrepareOptions
) -> Iterator[tuple[Record, bytes | None]]:
    blank.whole = False
    try:
        timed = row.timing or parse_timestamps(row.text)
    except ValueError as error:
        blank.reason, blank.detail = "malformed timestamps", str(error)
        yield blank, None
        return
    cuts, unused = recut(timed, blank.duration_s, min_s=options.recut_min_s, max_s=options.recut_max_s)
    for number, cut in enumerate(cuts):
        piece = samples[round(cut.start_s * SAMPLE_RATE_HZ) : round(cut.end_s * SAMPLE_RATE_HZ)]
        record = _part_of(blank, f"{number:02d}", cut.text, _seconds(piece))
        fault = text_fault(row, record.transcript, options)
        fault = fault or pace_fault(record.duration_s, record.transcript, options)
        yield _finish(record, piece, fault, unit, f"-{number:02d}", options)
    for number, left in enumerate(unused):
        segment = left.segment
        record = _part_of(blank, f"unused-{number:02d}", segment.text, segment.end_s - segment.start_s)
        record.reason, record.detail = left.reason, f"{segment.start_s:.2f} to {segment.end_s:.2f} s"
        yield record, None
    if not cuts and not unused:
        blank.reason = "no closed segment"
        yield blank, None


def _stretch(samples: np.ndarray, span_s: tuple[float, float | None], record: Record) -> np.ndarray:
    """The samples of one stretch, whose length the record gets, or the reason why there are none."""
    lasts_s = len(samples) / SAMPLE_RATE_HZ
    start_s, end_s = span_s[0], lasts_s if span_s[1] is None else span_s[1]
    if end_s > lasts_s + _CLOCK_TOLERANCE_S or start_s >= lasts_s:
        record.reason, record.detail = "past the end of the audio", f"{start_s:.2f} to {end_s:.2f} s of {lasts_s:.2f} s"
        return samples[:0]
    piece = samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    record.duration_s, record.whole = _seconds(piece), False
    return piece


def _part_of(whole: Record, suffix: str, text: str, duration_s: float) -> Record:
    own = {"id": f"{whole.id}#{suffix}", "duration_s": round(duration_s, 4), "transcript": normalize(text, "target")}
    return replace(whole, **own, whole=False)


def _finish(
    record: Record, samples: np.ndarray, reason: str | None, unit: Unit, suffix: str, options: PrepareOptions
) -> tuple[Record, bytes | None]:
    """Encode a clip that passed every filter, or give the reason why it did not."""
    if reason:
        record.reason = reason
        return record, None
    pcm = to_int16(samples)
    encoded = encode(pcm, options.audio)
    record.fate = "kept"
    record.audio = f"clips/{unit.dataset}/{unit.shard:05d}/{record.row:06d}{suffix}.{options.audio}"
    record.size_bytes = len(encoded)
    record.fingerprint = fingerprint(pcm, encoded, options.audio)
    record.words = normalize(record.transcript, "strict")
    return record, encoded


def encode(pcm: np.ndarray, audio: str) -> bytes:
    """Encode mono 16 kHz int16 samples as ``flac`` or ``wav``, in memory: libsndfile hides a full disk."""
    stream = io.BytesIO()
    if audio == "flac":
        with soundfile.SoundFile(stream, "w", SAMPLE_RATE_HZ, 1, format="FLAC", compression_level=_FLAC_FASTEST) as out:
            out.buffer_write(pcm.tobytes(), "int16")  # ``soundfile.write`` takes a twentieth longer
    else:  # not by libsndfile, which takes four times as long for the same bytes
        with wave.open(stream, "wb") as file:
            file.setparams((1, pcm.itemsize, SAMPLE_RATE_HZ, len(pcm), "NONE", ""))
            file.writeframes(pcm.tobytes())
    return stream.getvalue()


def fingerprint(pcm: np.ndarray, encoded: bytes, audio: str) -> str:
    """MD5 of the samples as hex; a flac file brings its own."""
    if audio == "flac":
        return encoded[FLAC_MD5].hex()
    return hashlib.md5(pcm.tobytes(), usedforsecurity=False).hexdigest()


def _seconds(samples: np.ndarray) -> float:
    return round(len(samples) / SAMPLE_RATE_HZ, 4)
