"""One channel of several: their mean, unless they cancel each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hebrew_asr.audio.reading import Block

_WINDOW_S = 30.0
_WINDOW_FRAMES = 1 << 22  # 32 MiB for both ways of mixing
_CANCELED = 0.1
"""Power of the mean, as a share of what channels that have nothing in common would leave of it."""
_KEEP_LOUDEST = 0.5


class Mixer:
    """Mixes blocks of any number of channels to mono.

    A clip has one rule from start to end; of a longer recording each 30 s have their own, so that memory is bounded.
    Channels cancel where their mean has less than a tenth of the power that it would have if they were independent:
    a balanced cable that was recorded as stereo. Then the loudest channel is taken alone.
    """

    def __init__(self) -> None:
        self.canceled = False
        """Whether any window was canceling."""
        self.channels = 0
        """Most channels of any block."""
        self._empty()

    def _empty(self) -> None:
        self._means: list[np.ndarray] = []
        self._loudest: list[np.ndarray] = []
        self._frames, self._rate_hz, self._taken = 0, 0, 0
        self._power, self._mean_power = np.zeros(0), 0.0

    def mono(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Blocks of shape (frames,) with the same frames, somewhat later."""
        for samples, rate_hz in blocks:
            channels = samples.shape[1]
            self.channels = max(self.channels, channels)
            if self._means and (channels != len(self._power) or rate_hz != self._rate_hz):
                yield from self._flush()
            if channels == 1:
                yield samples[:, 0], rate_hz
                continue
            self._add(samples, rate_hz)
            if self._frames >= min(_WINDOW_S * rate_hz, _WINDOW_FRAMES):
                yield from self._flush()
        yield from self._flush()

    def _add(self, samples: np.ndarray, rate_hz: int) -> None:
        channels = samples.shape[1]
        if not self._means:
            self._power, self._rate_hz = np.zeros(channels), rate_hz
        mean = samples[:, 0]  # ``mean(axis=1)`` takes ten times as long: its inner loop is one frame
        for channel in range(1, channels):
            mean = mean + samples[:, channel]
        mean = mean / np.float32(channels)
        with np.errstate(over="ignore", invalid="ignore"):
            power = np.array([np.dot(samples[:, channel], samples[:, channel]) for channel in range(channels)])
            self._mean_power += float(np.dot(mean, mean))
        self._power += power
        if _KEEP_LOUDEST * power.max() > power[self._taken % channels]:
            self._taken = int(power.argmax())
        self._means.append(mean)
        self._loudest.append(samples[:, self._taken % channels].copy())
        self._frames += len(samples)

    def _flush(self) -> Iterator[Block]:
        if self._means:
            independent = float(self._power.sum()) / len(self._power) ** 2
            canceled = self._mean_power < _CANCELED * independent
            self.canceled |= canceled
            rate_hz = self._rate_hz
            chosen = self._loudest if canceled else self._means
            self._empty()
            for block in chosen:
                yield block, rate_hz
