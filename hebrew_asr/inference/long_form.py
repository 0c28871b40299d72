"""Recordings of any length, any number of them, as text with times: pieces of all of them share the model's batches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audio.segment import in_halves
from hebrew_asr.cores import usable_cores
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.inference.guards import suspicion
from hebrew_asr.inference.pieces import Piece, cut
from hebrew_asr.inference.transcriber import Heard, Transcriber
from hebrew_asr.text.prompt import checked_context
from hebrew_asr.text.repetition import without_loops

_CONTEXT_CHARACTERS = 200
_OUTCOMES_AT_ONCE = 64
_MOST_READERS, _READ_AHEAD = 8, 4
"""Threads that read recordings, and pieces that each has ready."""
Key = TypeVar("Key")


@dataclass(frozen=True)
class Segment:
    """Text that was said without a longer pause."""

    start_s: float
    end_s: float
    text: str
    language: str | None = None
    suspect: str | None = None
    """``repetition`` or ``endless``: the model lost its way here, in a second try too (see ``guards``)."""


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording."""

    segments: tuple[Segment, ...]
    duration_s: float

    @property
    def text(self) -> str:
        """All of it on one line."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def language(self) -> str | None:
        """The language of most segments."""
        named = Counter(segment.language for segment in self.segments if segment.language)
        return max(named, key=named.__getitem__) if named else None


@dataclass(frozen=True)
class Options:
    """How recordings are transcribed. Raises UsageError for a prompt that is too long, or for no pieces at a time."""

    prompt: str = ""
    """Context for every piece: names, topic, spelling."""
    condition_on_previous: bool = False
    """Also tell the model what was said just before; pieces are then decoded one by one."""
    batch_pieces: int = 32
    batches_at_once: int = 4
    """Read together and sorted by length, so that a short piece does not wait in its batch for a long one. Fewer tell
    segments sooner."""

    def __post_init__(self) -> None:
        checked_context(self.prompt)
        if self.batch_pieces < 1:
            raise UsageError(f"batch_pieces is {self.batch_pieces}: at least one piece is decoded at a time")


@dataclass(eq=False)
class _Recording(Generic[Key]):
    key: Key
    segments: list[Segment] = field(default_factory=list)
    outcome: float | DataError | None = None
    """Its length in s, or why there is none, once it was read to its end."""


_Item = tuple[_Recording[Key], Piece | float | DataError]


def transcribe_recording(transcriber: Transcriber, blocks: Iterable[np.ndarray], options: Options) -> Transcript:
    """One recording, as :func:`transcribe_all`.

    Raises:
        DataError: it cannot be decoded.
    """
    (_, outcome), *_ = transcribe_all(transcriber, [(0, blocks)], options)
    if isinstance(outcome, DataError):
        raise outcome
    return outcome


def transcribe_all(
    transcriber: Transcriber,
    recordings: Iterable[tuple[Key, Iterable[np.ndarray]]],
    options: Options = Options(),
    on_segment: Callable[[Key, Segment], None] = lambda _key, _segment: None,
    on_decoded: Callable[[float], None] = lambda _seconds: None,
) -> Iterator[tuple[Key, Transcript | DataError]]:
    """Transcripts in the order of the recordings, each as soon as its last piece is decoded.

    What is decoded next is read and searched for speech meanwhile. So twice ``batches_at_once`` batches of pieces and
    two blocks are in memory, however long the recordings are.

    Args:
        transcriber: the model.
        recordings: keys, and blocks as :func:`decode_blocks` gives them, of which some are read in other threads, a few
            recordings ahead. A ``DataError`` among its blocks is a recording's outcome.
        options: how.
        on_segment: told of each segment as it is decoded, those of a recording in order.
        on_decoded: told the seconds of speech of each batch.
    """
    open_recordings: deque[_Recording[Key]] = deque()
    most = 1 if options.condition_on_previous else options.batches_at_once * options.batch_pieces
    for batch in _ahead(_items(transcriber, recordings), most):
        for recording, _ in batch:
            if recording not in open_recordings:
                open_recordings.append(recording)
        heard = [(recording, item) for recording, item in batch if isinstance(item, Piece)]
        segments = _segments(transcriber, heard, options, on_decoded)
        for (recording, _), segment in zip(heard, segments, strict=True):
            if segment.text:
                recording.segments.append(segment)
                on_segment(recording.key, segment)
        for recording, item in batch:
            if not isinstance(item, Piece):
                recording.outcome = item
        while open_recordings and (outcome := open_recordings[0].outcome) is not None:
            done = open_recordings.popleft()
            yield done.key, outcome if isinstance(outcome, DataError) else Transcript(tuple(done.segments), outcome)


def _items(transcriber: Transcriber, recordings: Iterable[tuple[Key, Iterable[np.ndarray]]]) -> Iterator[_Item[Key]]:
    """Every piece of every recording in order, and after a recording's last piece its outcome.

    Where there are cores for it several recordings are read and searched at once: one core searches some 400 times as
    fast as real time, and a GPU decodes faster than that.
    """
    readers = min(max(len(usable_cores()) // 4, 1), _MOST_READERS)
    left, reading = iter(recordings), deque()
    with ThreadPoolExecutor(readers) as pool:
        while True:
            while len(reading) < (2 * readers if readers > 1 else 1) and (following := next(left, None)) is not None:
                items = _read(transcriber, *following)
                reading.append((items, pool.submit(list, islice(items, _READ_AHEAD))))
            if not reading:
                return
            items, first = reading.popleft()
            some = first.result()
            if len(some) == _READ_AHEAD:
                reading.appendleft((items, pool.submit(list, islice(items, _READ_AHEAD))))
            yield from some


def _read(transcriber: Transcriber, key: Key, blocks: Iterable[np.ndarray]) -> Iterator[_Item[Key]]:
    recording = _Recording(key)
    try:
        for item in cut(blocks, transcriber.cutting):
            yield recording, item
    except DataError as error:
        yield recording, error


def _ahead(items: Iterator[_Item[Key]], count: int) -> Iterator[list[_Item[Key]]]:
    """Batches of ``count`` pieces, with the outcomes between them; the next one is made in another thread meanwhile.

    After as many recordings without speech a batch has fewer pieces, so that these are told of.
    """

    def following() -> list[_Item[Key]]:
        batch: list[_Item[Key]] = []
        left = {True: count, False: _OUTCOMES_AT_ONCE}
        for item in items:
            batch.append(item)
            left[isinstance(item[1], Piece)] -= 1
            if not all(left.values()):
                break
        return batch

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(following)
        while batch := made.result():
            made = pool.submit(following)
            yield batch


def _segments(
    transcriber: Transcriber,
    pieces: Sequence[tuple[_Recording[Key], Piece]],
    options: Options,
    on_decoded: Callable[[float], None],
) -> list[Segment]:
    """A segment of each piece."""
    found: dict[int, Segment] = {}
    by_length = sorted(range(len(pieces)), key=lambda number: len(pieces[number][1].samples))
    for start in range(0, len(by_length), options.batch_pieces):
        batch = by_length[start : start + options.batch_pieces]
        contexts = [_context(pieces[number][0].segments, options) for number in batch]
        heard = transcriber.hear([pieces[number][1].samples for number in batch], contexts)
        for number, first in zip(batch, heard, strict=True):
            found[number] = _segment(transcriber, pieces[number][1], first)
        on_decoded(sum(len(pieces[number][1].samples) for number in batch) / SAMPLE_RATE_HZ)
    return [found[number] for number in range(len(pieces))]


def _context(before: Sequence[Segment], options: Options) -> str:
    if not options.condition_on_previous:
        return options.prompt
    trusted = " ".join(segment.text for segment in before[-3:] if not segment.suspect)
    return f"{options.prompt} {trusted[-_CONTEXT_CHARACTERS:]}".strip()


def _segment(transcriber: Transcriber, piece: Piece, heard: Heard) -> Segment:
    """What was heard, or, if that cannot be, what is heard in the piece's two halves without any context."""
    suspect = suspicion(heard.text, is_cut=heard.is_cut)
    text = heard.text
    if suspect:
        again = transcriber.hear(in_halves(piece.samples))
        if any(suspicion(half.text, is_cut=half.is_cut) for half in again):
            text = without_loops(text)
        else:
            text, suspect = " ".join(half.text for half in again if half.text), None
    return Segment(round(piece.start_s, 3), round(piece.end_s, 3), text, heard.language, suspect)
