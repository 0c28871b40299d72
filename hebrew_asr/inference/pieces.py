"""A recording in pieces that the model can hear: speech only, cut in silence, one after the other from a stream.

No sound is in two pieces, and only silence is in none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.inference.speech import FRAME, SpeechDetector

FRAMES_PER_S = SAMPLE_RATE_HZ / FRAME
_STARTS, _ENDS = 0.5, 0.35
"""Probabilities from which on a frame begins speech, and below which it ends it (Silero's own values)."""
_BEFORE_S, _AFTER_S = 0.8, 0.25
"""Sound kept around speech, as far as there is any: the detector begins late, on formant speech by up to 0.6 s."""
_LEAST_SPEECH_S = 0.09
_LEAST_PAUSE_S = 0.16
"""Closures of consonants are shorter."""
_QUIET_S = 0.1
"""Silence that stays at either end of a piece, as far as there is any."""
_WHOLE_SILENCE_S = 2.0
_SILENT_SHARE = 1e-3
"""Amplitude by that of the piece's loudest sample: 60 dB below it is silence."""


@dataclass(frozen=True)
class Cutting:
    """How long pieces are."""

    max_s: float = 30.0
    """No piece is longer: what the model trained on at most."""
    typical_s: float = 5.0
    """What it trained on mostly: the longer a piece is by this measure, the shorter a pause ends it."""
    whole_s: float = 15.0
    """A recording up to this length is taken as it is: the longest clip that it trained on, if that is known."""

    def pause_s(self, length_s: float) -> float:
        """The pause that ends a piece of so many seconds; shorter for a model of short clips."""
        pause_s = 0.8 if length_s < self.typical_s / 2 else 0.4 if length_s < self.typical_s else _LEAST_PAUSE_S
        return max(pause_s * min(self.typical_s / 5, 1), _LEAST_PAUSE_S)


DEFAULT_CUTTING = Cutting()


@dataclass(frozen=True)
class Piece:
    """Sound to decode by itself."""

    samples: np.ndarray
    """float32 (samples,), mono 16 kHz."""
    start_s: float
    """Where in the recording speech begins in it, and ends."""
    end_s: float


def cut(blocks: Iterable[np.ndarray], cutting: Cutting = DEFAULT_CUTTING) -> Iterator[Piece | float]:
    """Pieces of a recording in order; last of all the length of the recording in s.

    A recording of at most ``whole_s`` with no silence of 2 s is one piece from its first sample to its last, if there
    is speech in it: such a clip is decoded here as it is while training.

    Args:
        blocks: float32 arrays (samples,), mono 16 kHz, of any length.
    """
    cutter, head, held = _Cutter(cutting), _Head(cutting), []
    for block in blocks:
        for piece in cutter.feed(block):
            held.append(piece)
        if head.keep(block):
            continue
        yield from held
        held.clear()
    held += cutter.close()
    whole = head.whole(cutter)
    yield from [whole] if whole and held else held
    yield cutter.num_samples / SAMPLE_RATE_HZ


class _Head:
    """The beginning of a recording as it is, for as long as it may turn out to be one piece."""

    def __init__(self, cutting: Cutting):
        self._most, self._blocks, self._count = int(cutting.whole_s * SAMPLE_RATE_HZ), [], 0

    def keep(self, block: np.ndarray) -> bool:
        """Whether the recording is still short enough."""
        self._count += len(block)
        if self._count > self._most:
            self._blocks.clear()
            return False
        self._blocks.append(block)
        return True

    def whole(self, cutter: _Cutter) -> Piece | None:
        if not self._blocks or cutter.longest_silence_s >= _WHOLE_SILENCE_S:
            return None
        start_s, end_s = cutter.speech_s
        return Piece(np.concatenate(self._blocks), start_s, end_s)


class _Cutter:
    """Follows a stream frame by frame. Positions are frames from the beginning of the recording."""

    def __init__(self, cutting: Cutting):
        self._cutting, self._detector = cutting, SpeechDetector()
        self._max = int(cutting.max_s * FRAMES_PER_S) - 1
        self._before, self._after = round(_BEFORE_S * FRAMES_PER_S), round(_AFTER_S * FRAMES_PER_S)
        self._buffer, self._first = np.zeros(0, np.float32), 0
        self._probabilities: list[float] = []  # from frame self._first on
        self._taken = 0  # no later piece begins before it
        self._frame = 0
        self._start: int | None = None
        self._stop = 0  # frame after the last one with speech
        self._spoken = 0
        self.num_samples = 0
        self._silent, self._longest, self._speech = 0, 0, (-1, -1)

    @property
    def longest_silence_s(self) -> float:
        return self._longest / FRAMES_PER_S

    @property
    def speech_s(self) -> tuple[float, float]:
        """Where the first speech begins and the last ends."""
        return self._seconds(self._speech[0]), self._seconds(self._speech[1])

    def feed(self, block: np.ndarray) -> list[Piece]:
        self.num_samples += len(block)
        self._buffer = np.concatenate([self._buffer, block])
        return self._follow(self._detector(block))

    def close(self) -> list[Piece]:
        pieces = self._follow(self._detector.close())
        if self._start is not None:
            pieces += self._end(self._stop, min(self._stop + self._after, self._frame))
        return pieces

    def _follow(self, probabilities: np.ndarray) -> list[Piece]:
        pieces: list[Piece] = []
        for probability in probabilities.tolist():
            self._probabilities.append(probability)
            self._frame += 1
            self._count(probability)
            if self._start is None:
                if probability >= _STARTS:
                    self._start, self._stop, self._spoken = self._frame - 1, self._frame, 1
                continue
            if probability >= _ENDS:
                self._stop = self._frame
                self._spoken += probability >= _STARTS
            pause_s = (self._frame - self._stop) / FRAMES_PER_S
            if pause_s >= self._cutting.pause_s((self._stop - self._start) / FRAMES_PER_S):
                pieces += self._end(
                    self._stop, self._quietest(self._stop, min(self._stop + 2 * self._after, self._frame))
                )
            elif self._frame - self._begins() >= self._max:
                pieces += self._split()
        self._forget()
        return pieces

    def _count(self, probability: float) -> None:
        self._silent = 0 if probability >= _ENDS else self._silent + 1
        self._longest = max(self._longest, self._silent)
        if probability >= _STARTS:
            self._speech = (self._speech[0] if self._speech[0] >= 0 else self._frame - 1, self._frame)

    def _begins(self) -> int:
        assert self._start is not None
        return max(self._start - self._before, self._taken)

    def _end(self, stop: int, cut: int) -> list[Piece]:
        """Speech until ``stop`` is a piece until ``cut``."""
        assert self._start is not None
        start, self._start = self._start, None
        if self._spoken < _LEAST_SPEECH_S * FRAMES_PER_S:
            return []
        first = max(start - self._before, self._taken)
        self._taken = cut
        return [Piece(_without_silent_ends(self._samples(first, cut)), self._seconds(start), self._seconds(stop))]

    def _split(self) -> list[Piece]:
        """Speech goes on longer than a piece may be: cut in the later half, where there is least of it."""
        begins = self._begins()
        middle = begins + self._max // 2
        least = min(range(middle, self._frame - 1), key=self._speechiness)
        pieces = self._end(least, least)
        self._start, self._stop = least, self._frame
        self._spoken = self._max  # the end of a word, however short
        return pieces

    def _speechiness(self, frame: int) -> tuple[float, float]:
        """By the probability of its surroundings, then by loudness, for where the probability is 1 throughout."""
        at = frame - self._first
        around = self._probabilities[max(at - 1, 0) : at + 2]
        return round(sum(around) / len(around), 1), float(np.square(self._samples(frame, frame + 1)).sum())

    def _quietest(self, first: int, stop: int) -> int:
        """Where to cut in a pause: in the middle of its longest quiet run.

        The pause as the detector hears it may hold the end of a word, after a closure, and the beginning of the next.
        """
        samples = self._samples(first, stop)
        frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)  # the recording's last one may be shorter
        power = np.square(frames).mean(1)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], power <= 4 * power.min() + 1e-10, [0]])))
        begins, ends = edges[::2], edges[1::2]
        longest = int((ends - begins).argmax())
        return first + int(begins[longest] + ends[longest] + 1) // 2

    def _samples(self, first: int, stop: int) -> np.ndarray:
        return self._buffer[(first - self._first) * FRAME : (stop - self._first) * FRAME].copy()

    def _seconds(self, frame: int) -> float:
        return min(frame * FRAME, self.num_samples) / SAMPLE_RATE_HZ

    def _forget(self) -> None:
        """Drop what no later piece needs."""
        needed = self._begins() if self._start is not None else max(self._frame - self._before, self._taken)
        drop = min(needed, self._frame) - self._first
        if drop > 0:
            self._buffer, self._probabilities = self._buffer[drop * FRAME :].copy(), self._probabilities[drop:]
            self._first += drop


def _without_silent_ends(samples: np.ndarray) -> np.ndarray:
    """Without what is 60 dB below the loudest, but for 0.1 s: so the clips of a corpus begin and end.

    The demo's model, whose clips have so much or less, hears twice as many words wrong without that, and with more.
    """
    heard = np.flatnonzero(np.abs(samples) > _SILENT_SHARE * np.abs(samples).max(initial=0.0))
    if not len(heard):
        return samples
    kept = int(_QUIET_S * SAMPLE_RATE_HZ)
    return samples[max(heard[0] - kept, 0) : heard[-1] + 1 + kept]
