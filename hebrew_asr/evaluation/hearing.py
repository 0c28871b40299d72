"""Decode utterances to be scored, however many and however long, and keep what was heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.data.clip_audio import Unreadable, read_clip
from hebrew_asr.data.clips import Clip
from hebrew_asr.errors import DataError
from hebrew_asr.inference.long_form import Options, transcribe_all
from hebrew_asr.inference.transcriber import Transcriber
from hebrew_asr.text.scoring import Transcript

LONG, UNREADABLE = "longer than 30 s", "unreadable"
"""Beginnings of a transcript's note."""
_LONGEST_S = 30.0
"""What the encoder saw, in training too."""
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
    """Path of the recording; '' where it has no file of its own."""


def utterances_of(clips: Sequence[Clip]) -> list[Utterance]:
    """The clips of a manifest, the longest first. Their ids say what set they are of."""
    return [
        Utterance(clip.id, clip.transcript, lambda clip=clip: read_clip(clip), clip.group, audio=clip.own_file)
        for clip in sorted(clips, key=lambda clip: -clip.duration_s)
    ]


def heard(
    transcriber: Transcriber,
    utterances: Iterable[Utterance],
    batch: int,
    on_done: Callable[[float], None] = lambda _seconds: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Iterator[Transcript]:
    """A transcript of each utterance; of those decoded together the longest comes first.

    What cannot be read counts as heard empty. What is longer than 30 s is transcribed as a long recording is: what is
    no speech gives no text. Both are told, and noted in the transcript.

    Args:
        transcriber: the one decode path.
        utterances: read when their turn comes.
        batch: clips or pieces decoded together.
        on_done: told the seconds of sound of each batch, once it is decoded.
        tell: told of what is not decoded as the short clips are.
    """
    for read in _read_together(utterances, _BATCHES_AT_ONCE * batch):
        clips: list[tuple[Utterance, np.ndarray]] = []
        long: list[tuple[Utterance, list[np.ndarray]]] = []
        for utterance, sound in read:
            if isinstance(sound, Unreadable):
                tell(f"{sound}; it counts as heard empty")
                yield _transcript(utterance, "", None, f"{UNREADABLE}: {sound.reason}")
            elif len(sound) > _LONGEST_S * SAMPLE_RATE_HZ:
                long.append((utterance, [sound]))
            else:
                clips.append((utterance, sound))
        clips.sort(key=lambda pair: -len(pair[1]))
        for start in range(0, len(clips), batch):
            part = clips[start : start + batch]
            for (utterance, sound), text in zip(part, transcriber([sound for _, sound in part]), strict=True):
                yield _transcript(utterance, text, len(sound) / SAMPLE_RATE_HZ, "")
            on_done(sum(len(sound) for _, sound in part) / SAMPLE_RATE_HZ)
        for utterance, found in transcribe_all(transcriber, long, Options(batch_pieces=batch)):
            assert not isinstance(found, DataError)  # what is read already cannot fail to be
            note = f"{LONG} ({found.duration_s:.1f} s): transcribed as a long recording"
            tell(f"clip {utterance.id}: {note}")
            yield _transcript(utterance, found.text, found.duration_s, note)
            on_done(found.duration_s)


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
