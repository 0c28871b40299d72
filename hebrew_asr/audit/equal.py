"""Equal sound in sets that were prepared apart. Flac says by itself which samples it holds; other sound is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, quiet_decoders
from hebrew_asr.audio.source import AudioError, Part
from hebrew_asr.audit.clips import measure
from hebrew_asr.audit.columns import in_turn
from hebrew_asr.cores import usable_cores
from hebrew_asr.corpus.preparation.convert import FLAC_MD5
from hebrew_asr.corpus.preparation.workers import start_worker
from hebrew_asr.data.clip_audio import read_ahead
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.pools import Pool
from hebrew_asr.remote.paths import is_url
from hebrew_asr.streams import tracked

_CLIPS_PER_TASK = 200
_WORTH_PROCESSES = 2000
_MONO_16_BIT = SAMPLE_RATE_HZ << 8 | 15
"""Of flac's STREAMINFO 28 bits: the rate, channels less 1, bits of a sample less 1."""

Sides = Mapping[str, Clips]


def equal_sound(sets: Mapping[str, Sides]) -> dict[str, dict[int, tuple[str, str]]]:
    """Training clips whose very samples another set has as well, as its evaluation clips, or earlier to train on.

    Only clips whose lengths agree to a hundredth of a second are read. What cannot be decoded equals nothing.

    Args:
        sets: by its name, each set's ``train`` and, if there is one, ``eval``.

    Returns:
        By the name of each set and the row of a training clip, the other's side, ``eval`` before ``train``, and name.

    Raises:
        EnvironmentProblem: the server on which sound lies does not answer.
    """
    keys = _keys_of(sets)
    found: dict[str, dict[int, tuple[str, str]]] = {name: {} for name in sets}
    for place, name in enumerate(sets):
        own = keys[name, "train"]
        earlier, others = list(sets)[:place], [other for other in sets if other != name]
        for side, other in chain((("train", one) for one in reversed(earlier)), (("eval", one) for one in others)):
            if (other, side) in keys:
                rows = np.flatnonzero(np.isin(own, keys[other, side]) & (own != b""))
                found[name] |= dict.fromkeys(rows.tolist(), (side, other))
    return found


def _keys_of(sets: Mapping[str, Sides]) -> dict[tuple[str, str], np.ndarray]:
    """(clips,) S16, by set and side the digest of each clip's samples, empty for one of a length that no other has."""
    keys = {(name, side): np.zeros(len(clips), "S16") for name, sides in sets.items() for side, clips in sides.items()}
    lengths = {place: np.rint(100 * sets[place[0]][place[1]].durations_s) for place in keys}
    rows = {}
    for name, side in keys:
        elsewhere = [np.zeros(0), *(own for (other, _), own in lengths.items() if other != name)]
        rows[name, side] = np.flatnonzero(np.isin(lengths[name, side], np.concatenate(elsewhere)))
    count = sum(map(len, rows.values()))
    digests = _digests_of(chain.from_iterable(_tasks(sets[name][side], rows[name, side]) for name, side in keys), count)
    for place, own in rows.items():
        for row in own.tolist():
            keys[place][row] = next(digests)
    return keys


def _tasks(clips: Clips, rows: np.ndarray) -> Iterator[list[Clip]]:
    for first in range(0, len(rows), _CLIPS_PER_TASK):
        yield [clips[row] for row in rows[first : first + _CLIPS_PER_TASK].tolist()]


def _digests_of(tasks: Iterator[list[Clip]], count: int) -> Iterator[bytes]:
    if count <= _WORTH_PROCESSES:
        yield from chain.from_iterable(map(digests_of_some, tasks))
        return
    workers = len(usable_cores())
    with Pool(workers, start_worker) as pool:
        found = chain.from_iterable(in_turn(pool, digests_of_some, tasks, 4 * workers))
        yield from tracked(found, "comparing sound", count)


def digests_of_some(clips: list[Clip]) -> list[bytes]:
    """MD5 of each clip's 16-bit samples at 16 kHz, as in preparation; empty where it cannot be decoded."""
    heads = [replace(clip, size_bytes=_head_bytes(clip)) for clip in clips]
    read_ahead(heads)
    found = [_said(head.sound) for head in heads]
    silent = [clip for clip, said in zip(clips, found, strict=True) if not said]
    read_ahead(silent)
    with quiet_decoders():
        decoded = iter([bytes.fromhex(measure(clip.sound).fingerprint) for clip in silent])
    return [said or next(decoded) for said in found]


def _head_bytes(clip: Clip) -> int:
    """How much of a clip is read first; 0 is all, of a file at a URL, which may be shorter than what is asked for."""
    return min(clip.size_bytes, FLAC_MD5.stop) or (0 if is_url(clip.audio) else FLAC_MD5.stop)


def _said(head: object) -> bytes:
    """What a flac file of 16-bit samples at 16 kHz says of them; empty for anything else."""
    assert isinstance(head, Part)
    try:
        content = head.read(str(head))
    except AudioError:
        return b""
    is_ours = content.startswith(b"fLaC") and int.from_bytes(content[18:22], "big") >> 4 == _MONO_16_BIT
    return content[FLAC_MD5] if is_ours and any(content[FLAC_MD5]) else b""
