"""All clips of a set and what was found of each, in columns: millions of Python objects would take gigabytes.

Clips stay in their manifests. What several of them may share is kept as a hash of 128 bits, and found by sorting.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import xxhash

from hebrew_asr.audio.decode import quiet_decoders
from hebrew_asr.audit.checks import QUIET_DB, Problem, faults_of, odd_pace, oddities, pace_of, recording_of
from hebrew_asr.audit.clips import Sound, measure
from hebrew_asr.cores import usable_cores
from hebrew_asr.corpus.preparation.workers import start_worker
from hebrew_asr.data.clip_audio import read_ahead
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.data.keys import sentence_key
from hebrew_asr.pools import Pool
from hebrew_asr.streams import tracked
from hebrew_asr.text.normalize import normalize

_CLIPS_PER_TASK = 200
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_SHARED = ("audio", "group", "recording", "sentence")
_ROW = np.dtype(
    [
        *((name, bool) for name in ("decodes", "is_heard", "ends_loud")),
        *((name, np.float64) for name in ("duration_s", "level_db", "speech_s", "log_pace")),
        *((name, np.int32) for name in ("characters", "words", "rate_hz", "channels")),
        *((kind, np.uint64, 2) for kind in ("id", *_SHARED)),
    ]
)
"""Of each clip. ``decodes`` holds for all where none was decoded; ``duration_s`` is the manifest's then. A key of 0 is
none."""
T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """What was found of neighboring clips, each by its number among them."""

    rows: np.ndarray
    faults: list[tuple[int, Problem]] = field(default_factory=list)
    oddities: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    characters: Counter[str] = field(default_factory=Counter)
    """How often each is in the transcripts."""
    first: dict[str, str] = field(default_factory=dict)
    """Id of the first clip that has a character."""


@dataclass(frozen=True)
class Suspect:
    """A clip that may be right but looks odd."""

    side: str
    clip: Clip
    row: np.ndarray
    """What was found of it, a single row."""
    score: float
    """How odd; comparable between reasons."""
    reasons: tuple[str, ...]
    """In words, each starting with its kind before a colon."""


@dataclass(frozen=True)
class Measured:
    """A set, measured; rows are its clips in the order of their manifests, training first."""

    sides: dict[str, Clips]
    found: Findings
    is_decoded: bool

    def side(self, name: str) -> np.ndarray:
        """(clips,) rows of ``train`` or ``eval``."""
        first = len(self.sides["train"])
        return self.found.rows[:first] if name == "train" else self.found.rows[first:]

    def place(self, row: int) -> tuple[str, Clip]:
        """Side and clip of a row."""
        first = len(self.sides["train"])
        return ("train", self.sides["train"][row]) if row < first else ("eval", self.sides["eval"][row - first])


def chars_per_s(rows: np.ndarray) -> np.ndarray:
    """(clips,) Characters of the transcript per second of the clip."""
    return rows["characters"] / np.maximum(rows["duration_s"], 1e-3)


def measure_all(sides: dict[str, Clips], processes: int | None, *, decodes: bool) -> Measured:
    """Measure every clip in worker processes.

    Args:
        sides: ``train`` and, if there is one, ``eval``.
        processes: how many; one per usable core by default.
        decodes: decode each clip; otherwise only what the manifests say is looked at.
    """
    sizes = [len(clips) for clips in sides.values()]
    whole = Findings(np.zeros(sum(sizes), _ROW))
    tasks = map(list, chain.from_iterable(clips.parts(_CLIPS_PER_TASK) for clips in sides.values()))
    work = partial(measure_some, decodes=decodes)
    count = sum(-(-size // _CLIPS_PER_TASK) for size in sizes)
    if sum(sizes) <= _CLIPS_PER_TASK:  # not worth a process
        _add_all(whole, map(work, tasks))
        return Measured(sides, whole, decodes)
    workers = min(processes or len(usable_cores()), count)
    with Pool(workers, start_worker) as pool:
        parts = in_turn(pool, work, tasks, 4 * workers)
        _add_all(whole, tracked(parts, "auditing", count))
    return Measured(sides, whole, decodes)


def in_turn(pool: Pool, work: Callable[[list[Clip]], T], tasks: Iterable[list[Clip]], ahead: int) -> Iterator[T]:
    """As ``pool.map``, with so many tasks at a time: it would make all of them at once."""
    begun: deque[Future[T]] = deque()
    for task in tasks:
        begun.append(pool.submit(work, task))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _add_all(whole: Findings, parts: Iterable[Findings]) -> None:
    start = 0
    for part in parts:
        whole.rows[start : start + len(part.rows)] = part.rows
        whole.faults += [(start + row, problem) for row, problem in part.faults]
        whole.oddities |= {start + row: odd for row, odd in part.oddities.items()}
        whole.characters.update(part.characters)
        whole.first = part.first | whole.first
        start += len(part.rows)


def measure_some(clips: list[Clip], *, decodes: bool) -> Findings:
    """Measure some clips."""
    part = Findings(np.zeros(len(clips), _ROW))
    if decodes:
        read_ahead(clips)
    with quiet_decoders():
        for row, clip in enumerate(clips):
            part.rows[row] = _measured(part, row, clip, measure(clip.sound) if decodes else None)
    return part


def _measured(part: Findings, row: int, clip: Clip, sound: Sound | None) -> tuple:
    """The values of a row; the rest is added to ``part``."""
    transcript = clip.transcript
    words = normalize(transcript, "strict")
    part.faults += [(row, fault) for fault in faults_of(clip, transcript, normalize(transcript, "target"), sound)]
    is_heard = sound is not None and not sound.fault and sound.duration_s > 0
    if (is_heard or sound is None) and (odd := list(oddities(transcript, sound))):
        part.oddities[row] = odd
    part.characters.update(transcript)
    for character in set(transcript) - part.first.keys():
        part.first[character] = clip.id
    sound = sound or Sound(duration_s=clip.duration_s)
    recording, sentence = recording_of(clip), words if sentence_key(words) else ""
    return (
        *(not sound.fault, is_heard, sound.ends_loud, sound.duration_s, sound.level_db, sound.speech_s),
        *(math.log(pace_of(transcript, sound.speech_s)), len(transcript), len(words.split())),
        *(sound.rate_hz, sound.channels, _key(clip.id), _halves(int(sound.fingerprint or "0", 16))),
        *map(_key, (clip.group, recording, sentence)),
    )


def _key(value: str) -> tuple[int, int]:
    return _halves(xxhash.xxh3_128_intdigest(value.encode())) if value else (0, 0)


def _halves(number: int) -> tuple[int, int]:
    return divmod(number, 1 << 64)


def _first_equal(keys: np.ndarray) -> np.ndarray:
    """(clips,) int64, for each of ``keys`` (clips, 2) the first clip that has it; the clip itself where it is none."""
    high, low = (np.ascontiguousarray(half) for half in keys.T)
    order = np.lexsort((low, high))
    begins = np.ones(len(order), bool)
    begins[1:] = np.diff(high[order]).astype(bool) | np.diff(low[order]).astype(bool)
    first = np.empty_like(order)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return np.where(high | low, first, np.arange(len(order)))


def shared_of(measured: Measured) -> dict[str, list[str]]:
    """By kind of key that any clip has, the values that are on both sides."""
    rows, train, found = measured.found.rows, len(measured.sides["train"]), {}
    for kind in _SHARED:
        if rows[kind].any():
            first = _first_equal(rows[kind])[train:] if len(rows) > train else np.empty(0, np.int64)
            found[kind] = [_value(measured, kind, row) for row in np.unique(first[first < train]).tolist()]
    return found


def _value(measured: Measured, kind: str, row: int) -> str:
    _, clip = measured.place(row)
    match kind:
        case "audio":
            high, low = measured.found.rows["audio"][row].tolist()
            return f"{high:016x}{low:016x}"
        case "group":
            return clip.group
        case "recording":
            return recording_of(clip)
    return normalize(clip.transcript, "strict")


def find_problems(measured: Measured, shared: dict[str, list[str]]) -> list[Problem]:
    """Every violation, in the order of the clips; leaks (``shared``, from :func:`shared_of`) last."""
    found = [(row, problem) for row, problem in measured.found.faults]
    for row, _ in _repeated(measured.found.rows["id"]):
        side, clip = measured.place(row)
        found.append((row, Problem("repeated id", clip.id, side)))
    for row, first in _repeated(measured.found.rows["audio"]):
        (_, clip), (side, other) = measured.place(row), measured.place(first)
        found.append((row, Problem("duplicate audio", clip.id, f"the same samples as {other.id} ({side})")))
        if normalize(clip.transcript, "strict") != normalize(other.transcript, "strict"):
            texts = f"{clip.transcript[:60]!r}, and of {other.id} {other.transcript[:60]!r}"
            found.append((row, Problem("two texts", clip.id, texts)))
    leaks = sorted(f"{kind}:{value}" for kind, values in shared.items() for value in values)
    return [problem for _, problem in sorted(found, key=lambda item: item[0])] + [
        Problem("leak", key.partition(":")[2], f"{key.partition(':')[0]} on both sides") for key in leaks
    ]


def _repeated(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each clip whose key an earlier one has, with the first of these."""
    first = _first_equal(keys)
    rows = np.flatnonzero(first != np.arange(len(first)))
    return zip(rows.tolist(), first[rows].tolist(), strict=True)


def find_suspects(measured: Measured, count: int) -> list[Suspect]:
    """The ``count`` oddest clips, each kind of oddity in turn, the oddest first."""
    odd = _odd_paces(measured)
    for row, own in measured.found.oddities.items():
        odd[row] = odd.get(row, []) + own
    scores = sorted((-max(score for score, _ in own), measured.place(row)[1].id, row) for row, own in odd.items())
    turn: Counter[str] = Counter()
    ranked = []  # the worst of each kind, then the second worst of each, so that one common fault hides no others
    for score, _, row in scores:
        kind = odd[row][0][1].partition(":")[0]
        ranked.append((turn[kind], len(ranked), row, -score))
        turn[kind] += 1
    return [
        Suspect(
            *measured.place(row),
            measured.found.rows[row],
            score,
            tuple(reason for _, reason in odd[row]),
        )
        for _, _, row, score in sorted(ranked)[:count]
    ]


def _odd_paces(measured: Measured) -> dict[int, list[tuple[float, str]]]:
    rows = measured.found.rows
    heard = np.flatnonzero(rows["is_heard"])
    if not len(heard):
        return {}
    pace = rows["log_pace"][heard]
    middle = np.median(pace)
    sigmas = (pace - middle) / max(_MAD_TO_SIGMA * np.median(np.abs(pace - middle)), 0.05)
    loud = rows["level_db"][heard] >= QUIET_DB
    found = {}
    for number in np.flatnonzero(loud & (np.abs(sigmas) > 2)).tolist():
        row = int(heard[number])
        speech_s, characters, ends_loud = (rows[name][row].item() for name in ("speech_s", "characters", "ends_loud"))
        if odd := list(odd_pace(float(sigmas[number]), characters, speech_s, ends_loud=ends_loud)):
            found[row] = odd
    return found


def charset(measured: Measured) -> list[tuple[str, int, str]]:
    """Each character of the transcripts with its count and the id of its first clip, the most frequent first."""
    found = measured.found
    counts = sorted(found.characters.items(), key=lambda item: (-item[1], item[0]))
    return [(character, count, found.first[character]) for character, count in counts]
