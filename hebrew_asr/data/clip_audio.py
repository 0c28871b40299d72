"""The sound of a manifest's clip, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hebrew_asr.audio.decode import decode
from hebrew_asr.audio.source import Part, fetch_ahead
from hebrew_asr.data.clips import Clip
from hebrew_asr.errors import EnvironmentProblem, HebrewASRError, first_line
from hebrew_asr.remote import cache
from hebrew_asr.remote.paths import is_url


@dataclass(frozen=True)
class Unreadable:
    """A clip whose sound cannot be used."""

    clip_id: str
    reason: str
    """In words, with the file."""

    def __str__(self) -> str:
        return f"clip {self.clip_id}: {self.reason}"


def read_ahead(clips: Iterable[Clip]) -> None:
    """Ask for the sound of clips in shards or at URLs, all at once, for the calls of :func:`read_clip` that follow."""
    places = [(clip.audio, clip.offset_bytes, clip.size_bytes) for clip in clips]
    fetch_ahead(Part(*place) for place in places if place[2] and not is_url(place[0]))
    cache.read_ahead(place for place in places if is_url(place[0]))


def read_clip(clip: Clip) -> np.ndarray | Unreadable:
    """Decode a clip: float32 (samples,), mono 16 kHz, as long as the manifest says.

    Whatever exception is raised while it is decoded is told as this clip's fault: a decoder may raise anything.

    Raises:
        EnvironmentProblem: the server on which it lies does not answer.
    """
    try:
        return decode(clip.sound, stated_s=clip.duration_s)
    except EnvironmentProblem:
        raise
    except HebrewASRError as error:
        return Unreadable(clip.id, str(error))
    except Exception as error:  # MemoryError, a decoder's RuntimeError, numpy's ValueError, …
        return Unreadable(clip.id, f"cannot decode audio {clip.sound}: {type(error).__name__}: {first_line(error)}")
