"""What every source gives: rows, in units of work that one process converts at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hebrew_asr.audio.source import opened
from hebrew_asr.text.sets import split_of
from hebrew_asr.text.timestamps import TimedText

ROWS_PER_UNIT = 100
"""Half a second of work, and one row group as the hub writes them: little to lose by a kill or to wait for at the end,
enough that its bookkeeping costs nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One recording as its source has it, before any filter."""

    id: str
    """Unique in its source."""
    text: str
    """Raw transcript, possibly vocalized, possibly with ``<|0.00|>`` tokens."""
    audio: bytes | str
    """Content of an audio file, or the path of one."""
    groups: tuple[str, ...] = ()
    """What it must share a side of the split with, as ``kind:value`` (source, episode, session, speaker, uuid)."""
    flags: tuple[str, ...] = ()
    """What its annotator said is wrong with it (``noisy``, ``skipped``, …)."""
    stated_duration_s: float | None = None
    """Length that its metadata claims; audio that decodes to much less is truncated."""
    states_all: bool = False
    """The stated length is that of all that the text holds, so much longer audio holds speech that it does not."""
    timed: bool = False
    """The text holds timestamp tokens at which the audio can be cut."""
    timing: TimedText | None = None
    """When what is said, where that stands beside the text: subtitles, a TextGrid."""
    span_s: tuple[float, float | None] | None = None
    """The stretch of the audio that is this recording, from and to in seconds; None for its end."""
    problem: tuple[str, str] | None = None
    """Why it can be no clip, where its source shows that already: the reason, and what exactly is wrong."""
    retake: bool = False
    """A second transcription of audio that was already given to another annotator."""

    @property
    def size_bytes(self) -> int:
        """Of the audio as it is stored; 0 where there is none to be read."""
        if isinstance(self.audio, bytes):
            return len(self.audio)
        try:
            return Path(self.audio).stat().st_size if self.audio and not self.problem else 0
        except (OSError, ValueError):  # ValueError: a NUL in its name
            return 0

    def audio_bytes(self) -> bytes:
        """Content of the audio file. Raises DataError when it cannot be read."""
        with opened(self.audio, self.id) as source:
            return source.read_at(0, source.size)


class Unit(Protocol):
    """A few hundred neighboring rows of one shard. Units are pickled to worker processes."""

    @property
    def dataset(self) -> str: ...
    @property
    def shard(self) -> int: ...
    @property
    def first_row(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def held_out(self) -> bool: ...
    def rows(self) -> Iterator[tuple[int, Row]]:
        """Rows with their position in the shard."""
        ...


def unit_name(unit: Unit) -> str:
    """Stable name of a unit, also its path under the work folder."""
    return f"{unit.dataset}/{unit.shard:05d}-{unit.first_row:07d}"


class Shard(Protocol):
    """One file of a source, perhaps not on this machine yet."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def bytes_to_download(self) -> int: ...
    @property
    def held_out(self) -> bool: ...
    def units(self) -> list[Unit]:
        """Bring the file here if it is not, and cut it into units. Raises DataError or EnvironmentProblem."""
        ...


@dataclass(frozen=True)
class Source:
    """A named, pinned collection of shards."""

    name: str
    """Short name, the first part of every clip id."""
    revision: str
    """Commit of a hub repository, or ``sha256:…`` of what the local files are called and hold."""
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    """What its user should know of how it was read, a sentence each."""


def is_held_out(relative_path: str) -> bool:
    """Whether a shard's own path says that it belongs to a test or validation split."""
    return split_of(relative_path) in ("test", "validation")
