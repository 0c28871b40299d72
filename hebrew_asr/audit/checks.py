"""What is wrong with a clip, and what about it deserves a listen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from hebrew_asr.audit.clips import Sound
from hebrew_asr.data.clips import Clip

QUIET_DB = -50.0
_ODD_SIGMAS = 4.0
_CLIPPED = 0.01
_OVER = 1.1  # mp3 and resampling overshoot by less
_CUT_SIGMAS = 2.0
_LITTLE_SPEECH = 0.25
_REPEATS = 4
_HEBREW = re.compile("[א-ת]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not be in a training set."""

    kind: str
    clip_id: str
    detail: str


PROBLEM_KINDS = {
    "audio": "every file decodes",
    "duration": "durations are as the manifest says",
    "text": "texts are in the target normal form",
    "no Hebrew": "every text has a Hebrew letter",
    "repeated id": "ids are unique over both sides",
    "duplicate audio": "no recording occurs twice",
    "two texts": "equal recordings have equal texts",
    "leak": "training and evaluation share no recording, group or sentence",
    "files": "files are the ones that prepare wrote, or join",
}
"""Kinds of problem, each with what holds in its absence."""


def faults_of(clip: Clip, transcript: str, target: str, sound: Sound | None) -> Iterator[Problem]:
    """Every violation that a clip shows by itself.

    Args:
        clip: as its manifest has it.
        transcript: of the clip.
        target: the transcript in the target normal form, which it should have already.
        sound: None where it was not decoded.
    """
    if sound is not None and sound.fault:
        yield Problem("audio", clip.id, sound.fault)
    elif sound is not None and abs(sound.duration_s - clip.duration_s) > sound.tolerance_s:
        yield Problem("duration", clip.id, f"{clip.duration_s:.2f} s stated, {sound.duration_s:.2f} s decoded")
    if target != transcript:
        yield Problem("text", clip.id, _first_difference(transcript, target))
    if not _HEBREW.search(target):
        yield Problem("no Hebrew", clip.id, transcript[:60])


def _first_difference(text: str, normal: str) -> str:
    position = next(
        (i for i, (a, b) in enumerate(zip(text, normal, strict=False)) if a != b), min(len(text), len(normal))
    )
    found = text[position : position + 1]
    return f"{describe(found)} at character {position}" if found else "text is missing at the end"


def recording_of(clip: Clip) -> str:
    """The id without the number by which ``prepare`` tells clips of one recording apart, and a manifest its lines.

    Any other ``#`` is part of a name. The number of a clip is in the name of its file too.
    """
    whole, _, number = clip.id.rpartition("#")
    if not number.isdecimal():
        return clip.id
    path = PurePath(clip.audio)
    return whole if path.stem.endswith(f"-{number}") or whole.endswith(path.name) else clip.id


def pace_of(transcript: str, speech_s: float) -> float:
    """Characters per second of speech; short clips are given half a second and two characters of grace."""
    return (len(transcript) + 2) / (speech_s + 0.5)


def odd_pace(sigmas: float, characters: int, speech_s: float, *, ends_loud: bool) -> Iterator[tuple[float, str]]:
    """How odd the pace of a clip that is not quiet is, and why; ``sigmas``: beyond the middle of all clips."""
    rate = characters / max(speech_s, 0.02)
    if abs(sigmas) > _ODD_SIGMAS:
        what = "more text than speech" if sigmas > 0 else "more speech than text"
        yield abs(sigmas) / _ODD_SIGMAS, f"{what}: {rate:.0f} characters per second of speech"
    elif sigmas > _CUT_SIGMAS and ends_loud:
        yield sigmas / _CUT_SIGMAS, f"sound may end before its text: loud to its end, {rate:.0f} characters per second"


def oddities(transcript: str, sound: Sound | None) -> Iterator[tuple[float, str]]:
    """What is odd about a clip by itself: how odd, and why, in words that start with their kind before a colon."""
    if sound is not None:
        yield from _odd_sound(sound)
    letters, hebrew = sum(map(str.isalpha, transcript)), len(transcript) - len(_HEBREW.sub("", transcript))
    if letters and hebrew < letters / 2:
        yield 1.5 - hebrew / letters, f"mostly another script: {hebrew} of {letters} letters are Hebrew"
    repeats = _longest_repeat(transcript.split())
    if repeats >= _REPEATS:
        yield repeats / _REPEATS, f"repetition: a word {repeats} times in a row"


def _odd_sound(sound: Sound) -> Iterator[tuple[float, str]]:
    if sound.level_db < QUIET_DB:
        yield 1 + (QUIET_DB - sound.level_db) / 20, f"very quiet: {sound.level_db:.0f} dB"
    elif sound.speech_s < _LITTLE_SPEECH * sound.duration_s:
        share = sound.speech_s / sound.duration_s
        yield 1 + (_LITTLE_SPEECH - share) * 4, f"mostly silence: speech in {100 * share:.0f} % of it"
    if sound.canceled:
        yield 1.0, "channels cancel: their mean is near silence, so the loudest was taken alone"
    if sound.peak > _OVER:
        yield sound.peak, f"over full scale: its peak is {sound.peak:.2f}, and 16 bits end at 1"
    elif sound.clipped > _CLIPPED:
        yield 1 + sound.clipped, f"clipped: {100 * sound.clipped:.1f} % of samples at full scale"


def _longest_repeat(words: Sequence[str]) -> int:
    longest = run = 0
    for index, word in enumerate(words):
        run = run + 1 if index and word == words[index - 1] else 1
        longest = max(longest, run)
    return longest


def describe(character: str) -> str:
    """A character by code point and Unicode name."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'without a name').lower()}"
