"""Decode utterances to be scored, however many and however long, and keep what was heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audio.segment import split_at_pauses
from hebrew_asr.data.clip_audio import Unreadable, read_clip
from hebrew_asr.data.manifest import Clip
from hebrew_asr.text.scoring import Transcript

LONG, UNREADABLE = "longer than 30 s", "unreadable"
"""Beginnings of a transcript's note. 30 s are what the encoder saw, in training too."""
_BATCHES_AT_ONCE, _SECONDS_AT_ONCE = 8, 3600.0
"""Read and sorted by length together, whichever is less: at most 230 MB and one recording, little padding in any."""


@dataclass(frozen=True)
class Utterance:
    """A recording and what is said in it."""

    id: str
    reference: str
    read: Callable[[], np.ndarray | Unreadable]
    """Gives float32 (samples,), mono 16 kHz."""
    group: str = ""
    source: str = ""
    audio: str = ""
    """Its file; '' where there is none."""


def utterances_of(clips: Sequence[Clip], source: str) -> list[Utterance]:
    """The clips of a manifest."""
    return [
        Utterance(clip.id, clip.transcript, lambda clip=clip: read_clip(clip), clip.group, source, clip.audio)
        for clip in sorted(clips, key=lambda clip: -clip.duration_s)
    ]


def heard(
    transcribe: Callable[[Sequence[np.ndarray]], list[str]],
    utterances: Iterable[Utterance],
    batch: int,
    on_done: Callable[[float], None] = lambda _seconds: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Iterator[Transcript]:
    """A transcript of each utterance; of those decoded together the longest comes first.

    What cannot be read counts as heard empty. What is longer than 30 s is cut at its quietest moments and decoded piece
    by piece. Both are told, and noted in the transcript.

    Args:
        transcribe: the one decode path.
        utterances: read when their turn comes.
        batch: pieces decoded together.
        on_done: told the seconds of sound of each batch, once it is decoded.
        tell: told of what is not decoded as the short clips are.
    """
    for read in _read_together(utterances, _BATCHES_AT_ONCE * batch):
        sounds: list[tuple[Utterance, np.ndarray]] = []
        for utterance, sound in read:
            if isinstance(sound, Unreadable):
                tell(f"{sound}; it counts as heard empty")
                yield _transcript(utterance, "", None, f"{UNREADABLE}: {sound.reason}")
            else:
                sounds.append((utterance, sound))
        sounds.sort(key=lambda pair: -len(pair[1]))
        pieces = [(index, piece) for index, (_, sound) in enumerate(sounds) for piece in split_at_pauses(sound)]
        texts: list[list[str]] = [[] for _ in sounds]
        for start in range(0, len(pieces), batch):
            part = pieces[start : start + batch]
            answers = transcribe([piece for _, piece in part])
            for (index, _), text in zip(part, answers, strict=True):
                texts[index].append(text)
            on_done(sum(len(piece) for _, piece in part) / SAMPLE_RATE_HZ)
        for (utterance, sound), parts in zip(sounds, texts, strict=True):
            seconds, note = len(sound) / SAMPLE_RATE_HZ, ""
            if len(parts) > 1:
                note = f"{LONG} ({seconds:.1f} s): decoded in {len(parts)} pieces"
                tell(f"clip {utterance.id}: {note}")
            yield _transcript(utterance, " ".join(filter(None, parts)), seconds, note)


def _read_together(
    utterances: Iterable[Utterance], most: int
) -> Iterator[list[tuple[Utterance, np.ndarray | Unreadable]]]:
    held: list[tuple[Utterance, np.ndarray | Unreadable]] = []
    seconds = 0.0
    for utterance in utterances:
        sound = utterance.read()
        held.append((utterance, sound))
        seconds += 0.0 if isinstance(sound, Unreadable) else len(sound) / SAMPLE_RATE_HZ
        if len(held) == most or seconds >= _SECONDS_AT_ONCE:
            yield held
            held, seconds = [], 0.0
    if held:
        yield held


def _transcript(utterance: Utterance, text: str, seconds: float | None, note: str) -> Transcript:
    return Transcript(
        utterance.id,
        utterance.reference,
        text,
        utterance.group,
        utterance.source,
        None if seconds is None else round(seconds, 3),
        note,
    )
