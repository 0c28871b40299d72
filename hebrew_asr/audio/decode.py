"""The one way in which sound becomes samples: any container that can be read, to mono 16 kHz float32.

Read to the end of the stream and in blocks: a length field sizes nothing, and memory is bounded by what a caller takes.
A stream that states no length (mp3 without a tag, mp2, aac, amr, ac3, flv, MPEG-TS and mpg, mp4 in fragments, and
whatever was written live) may be cut without a trace: then what there is of it is heard, and nothing is said.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import soxr

from hebrew_asr.audio.frames import SAMPLE_RATE_HZ
from hebrew_asr.audio.mix import Mixer
from hebrew_asr.audio.readers import blocks_of, seconds_of
from hebrew_asr.audio.reading import Block, Reading
from hebrew_asr.audio.source import AudioError, Source, TooLong, TruncatedAudio, label_of, opened

LONGEST_S = 4 * 3600.0
"""Longest recording that :func:`decode` holds in memory, 0.9 GiB; :func:`decode_blocks` has no limit."""

_HEAD_BYTES = 8
_EXACT = {b"RIFF", b"RIFX", b"RF64", b"fLaC"}
_EXACT_TOLERANCE_S = 0.02
_CODED_TOLERANCE_S = 0.1
_MOST_COUNTED = 1 << 30
"""Samples of all channels that are decoded only to say how long a recording is: a few seconds' work."""
_OVERSCALE = 16.0
"""24 dB above full scale: no recording, but samples in units of integers."""


class Sound:
    """One recording, decoded while it is iterated over, once.

    Iteration yields float32 arrays of shape (samples,), mono 16 kHz, nominally within [-1, 1], each of a few megabytes
    at most. All of them are yielded before :class:`TruncatedAudio` is raised.

    Raises (while iterating):
        AudioError: the source is missing, no regular file, not audio, empty, damaged, encrypted or without an audio
            track; it holds NaN or infinite samples, or samples in units of integers; or it is not as long as stated.
        TruncatedAudio: it ends before its container says.
        TooLong: it is longer than ``longest_s``; so far only that much was yielded.
        EnvironmentProblem: there is no room for the copy of a stream.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str | None = None,
        stated_s: float | None = None,
        longest_s: float | None = None,
    ):
        """Take what :func:`decode` takes; without ``longest_s`` there is no limit."""
        self.label = name or label_of(source)
        self.rate_hz = 0
        """Of the file, known with the first block."""
        self.lasts_s = 0.0
        """Seconds that were decoded, known at the end."""
        self.peak = 0.0
        """Largest absolute sample so far; 1 is full scale."""
        self.tolerance_s = _CODED_TOLERANCE_S
        """By how much the length of such a file may differ from a stated one, known with the first block."""
        self._source, self._stated_s, self._longest_s = source, stated_s, longest_s
        self._mixer = Mixer()

    @property
    def channels(self) -> int:
        """Of the file, known with the first block."""
        return self._mixer.channels

    @property
    def canceled(self) -> bool:
        """Whether its channels cancel each other, so that one was taken alone; known at the end."""
        return self._mixer.canceled

    def __iter__(self) -> Iterator[np.ndarray]:
        with opened(self._source, self.label) as source:
            self.tolerance_s = length_tolerance_s(source.read_at(0, _HEAD_BYTES))
            limit_s = self._longest_s if self._stated_s is None else self._stated_s + self.tolerance_s
            reading = Reading(source, limit_s)
            blocks = _up_to(limit_s, blocks_of(reading), reading, self._stated_s)
            for block in _resampled(self._mixer.mono(self._watched(blocks, reading))):
                self._check_values(block)
                yield block
            if self._stated_s is not None and self.lasts_s > self._stated_s + self.tolerance_s:
                raise AudioError(self.label, f"it lasts longer than the {self._stated_s:.2f} s that its manifest says")
            if reading.cut:
                raise TruncatedAudio(self.label, f"it is cut off: {reading.cut}")
            self._check_length(limit_s)

    def _watched(self, blocks: Iterator[Block], reading: Reading) -> Iterator[Block]:
        for samples, rate_hz in blocks:
            self.rate_hz = self.rate_hz or rate_hz
            yield samples, rate_hz
        self.lasts_s = reading.lasts_s

    def _check_values(self, samples: np.ndarray) -> None:
        peak = float(max(samples.max(), -samples.min()))  # NaN wherever there is one
        if not math.isfinite(peak):
            raise AudioError(self.label, "it holds NaN or infinite samples")
        if peak > _OVERSCALE:
            raise AudioError(
                self.label, f"it holds samples of ±{peak:,.0f}, where 1 is full scale: write it anew, scaled to ±1"
            )
        self.peak = max(self.peak, peak)

    def _check_length(self, limit_s: float | None) -> None:
        if self.lasts_s == 0:
            raise AudioError(self.label, "it holds no samples")
        if self._stated_s is not None and self.lasts_s < self._stated_s - self.tolerance_s:
            raise AudioError(self.label, f"it lasts {self.lasts_s:.2f} s, its manifest says {self._stated_s:.2f} s")
        if limit_s is not None and self.lasts_s > limit_s:
            raise TooLong(self.label, f"it lasts longer than {limit_s:g} s", self.lasts_s)


def _up_to(limit_s: float | None, blocks: Iterator[Block], reading: Reading, stated_s: float | None) -> Iterator[Block]:
    """Blocks until more than ``limit_s`` was seen. The rest is counted, but for where a length is stated."""
    counted = 0
    for samples, rate_hz in blocks:
        if limit_s is None or reading.lasts_s <= limit_s:
            yield samples, rate_hz
            continue
        counted += samples.size
        if stated_s is not None or counted > _MOST_COUNTED:
            return


def _resampled(blocks: Iterator[Block]) -> Iterator[np.ndarray]:
    """Mono blocks of any rate to 16 kHz; where the rate changes, the resampler starts anew."""
    for rate_hz, of_one_rate in itertools.groupby(blocks, key=lambda block: block[1]):
        sounds = (samples for samples, _ in of_one_rate)
        for samples in sounds if rate_hz == SAMPLE_RATE_HZ else _from_rate(rate_hz, sounds):
            if len(samples):
                yield np.ascontiguousarray(samples)


def _from_rate(rate_hz: int, sounds: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    first, second = next(sounds), next(sounds, None)
    if second is None:  # as nearly all clips: in two thirds of the time, and bit for bit the same
        yield soxr.resample(first, rate_hz, SAMPLE_RATE_HZ)
        return
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32")
    for samples in itertools.chain((first, second), sounds):
        yield stream.resample_chunk(samples)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def decode(
    source: Source, *, name: str | None = None, stated_s: float | None = None, longest_s: float = LONGEST_S
) -> np.ndarray:
    """Decode a whole recording to mono 16 kHz.

    Args:
        source: path of an audio file, its whole content, or a binary stream, which is copied to a file first.
        name: what to call ``source`` in an error; defaults to the path.
        stated_s: how long a manifest says that it lasts. It is not decoded beyond that, so the memory that it takes
            follows from the manifest and not from the file.
        longest_s: what is longer is refused, and never held in memory.

    Returns:
        float32 array of shape (samples,), nominally within [-1, 1].

    Raises:
        AudioError, EnvironmentProblem: as :class:`Sound` says.
    """
    return joined(Sound(source, name=name, stated_s=stated_s, longest_s=longest_s))


def joined(sound: Sound) -> np.ndarray:
    """All samples of a recording. Raises what iterating over it raises."""
    blocks = list(sound)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def decode_blocks(source: Source, *, name: str | None = None) -> Iterator[np.ndarray]:
    """Decode a recording of any length to mono 16 kHz, a few megabytes at a time.

    Yields:
        float32 arrays of shape (samples,), nominally within [-1, 1]; never empty. Joined, they are what
        :func:`decode` returns.

    Raises:
        AudioError, EnvironmentProblem: as :class:`Sound` says, while iterating.
    """
    return iter(Sound(source, name=name))


def duration_s(source: Source) -> float:
    """Seconds that a recording lasts; decoded only where no header can be believed. Raises as :class:`Sound` says."""
    label = label_of(source)
    with opened(source, label) as file:
        return seconds_of(Reading(file))


def length_tolerance_s(head: bytes) -> float:
    """By how much the stated and the decoded length of a file that starts so may differ.

    Two mel frames (20 ms) for wav and flac, whose length is exact. For what is coded in blocks 0.1 s: decoders disagree
    about a codec's delay and its last block, and a block of an mp3 at 16 kHz lasts 36 ms.
    """
    return _EXACT_TOLERANCE_S if head[:4] in _EXACT else _CODED_TOLERANCE_S


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] to int16 with clipping: half the bytes on the way to the device."""
    scaled = samples * np.float32(32768.0)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


@contextmanager
def quiet_decoders() -> Generator[None, None, None]:
    """Mute what libmpg123 writes to file descriptor 2 about odd frames; a fault is told by its error.

    What is printed to ``sys.stderr`` goes on to where it went.
    """
    own = sys.stderr
    own.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere, open(saved, "w", 1, own.encoding, own.errors) as unmuted:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = unmuted if own is sys.__stderr__ else own
        try:
            yield
        finally:
            sys.stderr = own
            unmuted.flush()
            os.dup2(saved, 2)
