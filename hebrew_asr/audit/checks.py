"""What is wrong with a set of clips, and which of them deserve a listen."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median

import numpy as np
import pyarrow

from hebrew_asr.audit.clips import Measured
from hebrew_asr.data.keys import Keys, sentences

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_ODD_SIGMAS = 4.0
_QUIET_DB = -50.0
_CLIPPED = 0.01
_OVER = 1.1  # mp3 and resampling overshoot by less
_CUT_SIGMAS = 2.0
_LITTLE_SPEECH = 0.25
_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not be in a training set."""

    kind: str
    clip_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A clip that may be right but looks odd."""

    measured: Measured
    score: float
    """How odd; comparable between reasons."""
    reasons: tuple[str, ...]
    """In words, each starting with its kind before a colon."""


PROBLEM_KINDS = {
    "audio": "every file decodes",
    "duration": "durations are as the manifest says",
    "text": "texts are in the target normal form",
    "no Hebrew": "every text has a Hebrew letter",
    "repeated id": "ids are unique over both sides",
    "duplicate audio": "no recording occurs twice",
    "two texts": "equal recordings have equal texts",
    "leak": "training and evaluation share no recording, group or sentence",
    "files": "files are the ones that prepare wrote",
}
"""Kinds of problem, each with what holds in its absence."""


def find_problems(clips: Sequence[Measured], shared: dict[str, pyarrow.Array]) -> list[Problem]:
    """Every violation, in the order of the clips; leaks (``shared``, from :func:`shared_of`) last."""
    problems: list[Problem] = []
    seen_ids: set[str] = set()
    seen_audio: dict[str, Measured] = {}
    for clip in clips:
        identity, fingerprint = clip.clip.id, clip.sound.fingerprint
        problems += [Problem(kind, identity, detail) for kind, detail in _faults_of(clip)]
        if identity in seen_ids:
            problems.append(Problem("repeated id", identity, clip.side))
        seen_ids.add(identity)
        first = seen_audio.setdefault(fingerprint, clip) if fingerprint else clip
        if first is not clip:
            problems.append(Problem("duplicate audio", identity, f"the same samples as {first.clip.id} ({first.side})"))
            if first.words != clip.words:
                texts = f"{clip.clip.transcript[:60]!r}, and of {first.clip.id} {first.clip.transcript[:60]!r}"
                problems.append(Problem("two texts", identity, texts))
    leaks = sorted(f"{kind}:{value}" for kind, values in shared.items() for value in values.to_pylist())
    return problems + [
        Problem("leak", key.partition(":")[2], f"{key.partition(':')[0]} on both sides") for key in leaks
    ]


def _faults_of(clip: Measured) -> Iterator[tuple[str, str]]:
    if clip.sound.fault:
        yield "audio", clip.sound.fault
    elif abs(clip.sound.duration_s - clip.clip.duration_s) > clip.sound.tolerance_s:
        yield "duration", f"{clip.clip.duration_s:.2f} s stated, {clip.sound.duration_s:.2f} s decoded"
    transcript = clip.clip.transcript
    if clip.target != transcript:
        yield "text", _first_difference(transcript, clip.target)
    if not any("א" <= character <= "ת" for character in clip.target):
        yield "no Hebrew", transcript[:60]


def _first_difference(text: str, normal: str) -> str:
    position = next(
        (i for i, (a, b) in enumerate(zip(text, normal, strict=False)) if a != b), min(len(text), len(normal))
    )
    found = text[position : position + 1]
    return f"{describe(found)} at character {position}" if found else "text is missing at the end"


def keys_of(clips: Sequence[Measured]) -> Keys:
    """What may not be on both sides."""
    return Keys.of(
        [()] * len(clips),
        recording=pyarrow.array([_recording_of(clip) for clip in clips], pyarrow.large_string()),
        group=pyarrow.array([clip.clip.group for clip in clips], pyarrow.large_string()),
        audio=pyarrow.array([clip.sound.fingerprint for clip in clips], pyarrow.large_string()),
        sentence=sentences(pyarrow.array([clip.words for clip in clips], pyarrow.large_string())),
    )


def _recording_of(clip: Measured) -> str:
    """The id without the number by which ``prepare`` tells clips of one recording apart, and a manifest its lines.

    Any other ``#`` is part of a name. The number of a clip is in the name of its file too.
    """
    whole, _, number = clip.clip.id.rpartition("#")
    path = PurePath(clip.clip.audio)
    numbered = number.isdecimal() and (path.stem.endswith(f"-{number}") or whole.endswith(path.name))
    return whole if numbered else clip.clip.id


def shared_of(clips: Sequence[Measured]) -> dict[str, pyarrow.Array]:
    """By kind of key, those that are on both sides."""
    return keys_of(clips).shared(np.array([clip.side == "eval" for clip in clips], bool))


def find_suspects(clips: Sequence[Measured], count: int) -> list[Suspect]:
    """The ``count`` oddest clips, each kind of oddity in turn, the oddest first."""
    sound = [clip for clip in clips if not clip.sound.fault and clip.sound.duration_s > 0]
    pace = {clip.clip.id: math.log(_pace(clip)) for clip in sound}
    middle = median(pace.values()) if pace else 0.0
    spread = _MAD_TO_SIGMA * median(abs(value - middle) for value in pace.values()) if pace else 1.0
    suspects = []
    for clip in sound:
        odd = list(_oddities(clip, (pace[clip.clip.id] - middle) / max(spread, 0.05)))
        if odd:
            suspects.append(Suspect(clip, max(score for score, _ in odd), tuple(reason for _, reason in odd)))
    return _by_turns(sorted(suspects, key=lambda suspect: (-suspect.score, suspect.measured.clip.id)))[:count]


def _by_turns(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The worst of each kind, then the second worst of each, so that one common fault does not hide the others."""
    turn: Counter[str] = Counter()
    ranked = []
    for position, suspect in enumerate(suspects):
        kind = suspect.reasons[0].partition(":")[0]
        ranked.append((turn[kind], position))
        turn[kind] += 1
    return [suspects[position] for _, position in sorted(ranked)]


def _pace(clip: Measured) -> float:
    """Characters per second of speech; short clips are given half a second and two characters of grace."""
    return (len(clip.clip.transcript) + 2) / (clip.sound.speech_s + 0.5)


def _oddities(clip: Measured, sigmas: float) -> Iterator[tuple[float, str]]:
    sound, letters = clip.sound, [c for c in clip.clip.transcript if c.isalpha()]
    if abs(sigmas) > _ODD_SIGMAS and sound.level_db >= _QUIET_DB:
        what = "more text than speech" if sigmas > 0 else "more speech than text"
        rate = len(clip.clip.transcript) / max(sound.speech_s, 0.02)
        yield abs(sigmas) / _ODD_SIGMAS, f"{what}: {rate:.0f} characters per second of speech"
    elif sigmas > _CUT_SIGMAS and sound.ends_loud and sound.level_db >= _QUIET_DB:
        rate = len(clip.clip.transcript) / max(sound.speech_s, 0.02)
        yield sigmas / _CUT_SIGMAS, f"sound may end before its text: loud to its end, {rate:.0f} characters per second"
    if sound.level_db < _QUIET_DB:
        yield 1 + (_QUIET_DB - sound.level_db) / 20, f"very quiet: {sound.level_db:.0f} dB"
    elif sound.speech_s < _LITTLE_SPEECH * sound.duration_s:
        share = sound.speech_s / sound.duration_s
        yield 1 + (_LITTLE_SPEECH - share) * 4, f"mostly silence: speech in {100 * share:.0f} % of it"
    if sound.canceled:
        yield 1.0, "channels cancel: their mean is near silence, so the loudest was taken alone"
    if sound.peak > _OVER:
        yield sound.peak, f"over full scale: its peak is {sound.peak:.2f}, and 16 bits end at 1"
    elif sound.clipped > _CLIPPED:
        yield 1 + sound.clipped, f"clipped: {100 * sound.clipped:.1f} % of samples at full scale"
    hebrew = sum("א" <= letter <= "ת" for letter in letters)
    if letters and hebrew < len(letters) / 2:
        yield 1.5 - hebrew / len(letters), f"mostly another script: {hebrew} of {len(letters)} letters are Hebrew"
    repeats = _longest_repeat(clip.clip.transcript.split())
    if repeats >= _REPEATS:
        yield repeats / _REPEATS, f"repetition: a word {repeats} times in a row"


def _longest_repeat(words: Sequence[str]) -> int:
    longest = run = 0
    for index, word in enumerate(words):
        run = run + 1 if index and word == words[index - 1] else 1
        longest = max(longest, run)
    return longest


def charset(clips: Iterable[Measured]) -> list[tuple[str, int, str]]:
    """Each character of the transcripts with its count and the id of its first clip, the most frequent first."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for clip in clips:
        counts.update(clip.clip.transcript)
        for character in set(clip.clip.transcript):
            first.setdefault(character, clip.clip.id)
    return [
        (character, count, first[character]) for character, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))
    ]


def describe(character: str) -> str:
    """A character by code point and Unicode name."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'without a name').lower()}"
