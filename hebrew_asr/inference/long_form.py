"""Recordings of any length, any number of them, as text with times: pieces of all of them share the model's batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode_blocks
from hebrew_asr.audio.segment import split_at_pauses
from hebrew_asr.errors import DataError
from hebrew_asr.inference.guards import suspicion, without_loops
from hebrew_asr.inference.pieces import Piece, cut
from hebrew_asr.inference.transcriber import Heard, Transcriber

_CONTEXT_CHARACTERS = 200
_OUTCOMES_AT_ONCE = 64
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
        named = [segment.language for segment in self.segments if segment.language]
        return max(named, key=named.count) if named else None


@dataclass(frozen=True)
class Options:
    """How recordings are transcribed."""

    prompt: str = ""
    """Context for every piece: names, topic, spelling."""
    condition_on_previous: bool = False
    """Also tell the model what was said just before; pieces are then decoded one by one."""
    batch_pieces: int = 16


@dataclass(eq=False)
class _Recording(Generic[Key]):
    key: Key
    segments: list[Segment] = field(default_factory=list)
    outcome: float | DataError | None = None
    """Its length in s, or why there is none, once it was read to its end."""


_Item = tuple[_Recording[Key], Piece | float | DataError]


def transcribe_recording(transcriber: Transcriber, sound: str | Path | bytes, options: Options) -> Transcript:
    """One recording, as :func:`transcribe_all`.

    Raises:
        DataError: it cannot be decoded.
    """
    (_, outcome), *_ = transcribe_all(transcriber, [(0, decode_blocks(sound))], options)
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

    The next batch is read and searched for speech while one is decoded. So two batches of pieces and two blocks are in
    memory, however long the recordings are.

    Args:
        transcriber: the model.
        recordings: keys, and blocks as :func:`decode_blocks` gives them; nothing of a recording is read before it is
            its turn. A ``DataError`` among its blocks is its outcome.
        options: how.
        on_segment: told of each segment as it is decoded, those of a recording in order.
        on_decoded: told the seconds of speech of each batch.
    """
    open_recordings: deque[_Recording[Key]] = deque()
    for batch in _ahead(_items(transcriber, recordings), 1 if options.condition_on_previous else options.batch_pieces):
        for recording, _ in batch:
            if recording not in open_recordings:
                open_recordings.append(recording)
        heard = [(recording, item) for recording, item in batch if isinstance(item, Piece)]
        segments = _segments(transcriber, heard, options)
        for (recording, _), segment in zip(heard, segments, strict=True):
            if segment.text:
                recording.segments.append(segment)
                on_segment(recording.key, segment)
        on_decoded(sum(len(piece.samples) for _, piece in heard) / SAMPLE_RATE_HZ)
        for recording, item in batch:
            if not isinstance(item, Piece):
                recording.outcome = item
        while open_recordings and (outcome := open_recordings[0].outcome) is not None:
            done = open_recordings.popleft()
            yield done.key, outcome if isinstance(outcome, DataError) else Transcript(tuple(done.segments), outcome)


def _items(transcriber: Transcriber, recordings: Iterable[tuple[Key, Iterable[np.ndarray]]]) -> Iterator[_Item[Key]]:
    """Every piece of every recording, and after a recording's last piece its outcome."""
    for key, blocks in recordings:
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
    transcriber: Transcriber, batch: Sequence[tuple[_Recording[Key], Piece]], options: Options
) -> list[Segment]:
    if not batch:
        return []
    contexts = [_context(recording.segments, options) for recording, _ in batch]
    heard = transcriber.hear([piece.samples for _, piece in batch], contexts)
    return [_segment(transcriber, piece, first) for (_, piece), first in zip(batch, heard, strict=True)]


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
        lasts_s = len(piece.samples) / SAMPLE_RATE_HZ
        halves = split_at_pauses(piece.samples, max_s=0.65 * lasts_s, search_s=0.3 * lasts_s)
        again = transcriber.hear(halves)
        if any(suspicion(half.text, is_cut=half.is_cut) for half in again):
            text = without_loops(text)
        else:
            text, suspect = " ".join(half.text for half in again if half.text), None
    return Segment(round(piece.start_s, 3), round(piece.end_s, 3), text, heard.language, suspect)
