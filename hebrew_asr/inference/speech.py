"""Where speech is: probabilities of voice activity by Silero's model, 32 ms at a time, of a stream.

silero-vad takes a block of frames in one call of ONNX Runtime: on one core hundreds of times real time, four times what
it takes frame by frame, for probabilities that are the same but for 3e-6.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ

FRAME = 512
"""Samples of one probability: 32 ms, the only length that the model takes."""

_CONTEXT = 64
"""Samples before a frame that the model hears with it."""
_FRAMES_AT_ONCE = 512
_TARGET_RMS = 0.1
_MAX_GAIN = 300.0
"""About 50 dB. The model misses speech below some -40 dB of full scale, and finds no voice in noise, however loud."""
_MEMORY_FRAMES = 10 * SAMPLE_RATE_HZ // FRAME
_UPDATED = 8
"""Frames between two looks at all that is remembered."""
_LOUD = 0.95
_OFFSET_SHARE = 0.5
_LOADING = threading.Lock()
_SILENT_SHARE = 1e-3
"""60 dB below the loud parts there is no speech, though the model hears on for a tenth of a second."""


class SpeechDetector:
    """Probability of speech in a stream of mono 16 kHz sound, whatever its level."""

    def __init__(self) -> None:
        self._context = np.zeros((1, _CONTEXT), np.float32)
        self._state = [np.zeros((1, 1, 128), np.float32)] * 2
        self._rest = np.zeros(0, np.float32)
        self._levels: deque[float] = deque(maxlen=_MEMORY_FRAMES)
        self._moments: deque[tuple[float, float]] = deque(maxlen=_MEMORY_FRAMES)
        self._gain, self._loud, self._offset, self._frames = 1.0, 0.0, 0.0, 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Probabilities of the frames that are complete now.

        Args:
            samples: the next ones of the stream, float32 (samples,); finite.

        Returns:
            float32 (frames,), each of the next ``FRAME`` samples.
        """
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) // FRAME * FRAME
        self._rest = joined[whole:]
        frames = joined[:whole].reshape(-1, FRAME)
        frames = frames - self._offsets(frames)[:, None]
        levels = np.sqrt(np.square(frames).mean(1))
        gains, loud = self._follow(levels.tolist())
        probabilities = self._probabilities(np.clip(frames * gains[:, None], -1.0, 1.0))
        return np.where(levels < _SILENT_SHARE * loud, np.float32(0), probabilities)

    def close(self) -> np.ndarray:
        """The probability of what is left, filled up with silence: (1,), or (0,) if nothing is. The stream is over."""
        return self(np.zeros(FRAME - len(self._rest), np.float32)) if len(self._rest) else np.zeros(0, np.float32)

    def _probabilities(self, frames: np.ndarray) -> np.ndarray:
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(frames), _FRAMES_AT_ONCE):
            part = frames[start : start + _FRAMES_AT_ONCE]
            before = np.concatenate([self._context, part[:-1, -_CONTEXT:]])
            values = {"input": np.hstack([before, part]), "h": self._state[0], "c": self._state[1]}
            probabilities, *self._state = _model().run(["speech_probs", "hn", "cn"], values)
            self._context = part[-1:, -_CONTEXT:]
            found.append(probabilities.reshape(-1))
        return np.concatenate(found)

    def _offsets(self, frames: np.ndarray) -> np.ndarray:
        """By how much the 10 s that end with each frame lie beside zero, where that is much beside their sound.

        Some recorders add a constant, which is no sound, but would be the loudest part of a quiet recording.
        """
        offsets = np.empty(len(frames), np.float32)
        moments = zip(frames.mean(1).tolist(), np.square(frames).mean(1).tolist(), strict=True)
        for number, moment in enumerate(moments):
            self._moments.append(moment)
            if (self._frames + number) % _UPDATED == 0:
                mean, square = (sum(part) / len(self._moments) for part in zip(*self._moments, strict=True))
                self._offset = mean if mean * mean > _OFFSET_SHARE**2 * (square - mean * mean) else 0.0
            offsets[number] = self._offset
        return offsets

    def _follow(self, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """The gain of each frame, and the level of the loud parts of the 10 s that end with it, or up to 7 before."""
        gains, louds = np.empty(len(levels), np.float32), np.empty(len(levels), np.float32)
        for number, level in enumerate(levels):
            self._levels.append(level)
            if self._frames % _UPDATED == 0:
                self._loud = _upper(self._levels)
                self._gain = min(max(_TARGET_RMS / max(self._loud, 1e-9), 1.0), _MAX_GAIN)
            self._frames += 1
            gains[number], louds[number] = self._gain, self._loud
        return gains, louds


def _upper(levels: Iterable[float]) -> float:
    """``np.quantile(levels, _LOUD)``, which takes as long as the model takes for a frame."""
    ordered = sorted(levels)
    place = (len(ordered) - 1) * _LOUD
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@cache
def _model() -> Any:
    """ONNX Runtime's session of the model, which keeps no state of a stream."""
    with _LOADING:
        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad  # sets torch to one thread; and training decodes without it

        torch.set_num_threads(threads)
    return load_silero_vad(sequence=True).session
