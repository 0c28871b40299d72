"""One source while it is read, by whichever decoder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import soundfile

from hebrew_asr.audio.source import AudioError, Opened

Block = tuple[np.ndarray, int]
"""float32 samples of shape (frames, channels), and how many of them make a second."""

BLOCK_VALUES = 1 << 20
"""Samples of all channels in a block: 4 MiB."""
MOST_CHANNELS = 64
RATES_HZ = (1_000, 768_000)


@dataclass(slots=True)
class Reading:
    """One source while it is read."""

    source: Opened
    longest_s: float | None = None
    """No more than this is wanted."""
    cut: str = ""
    """After the last block: how it is seen that sound is missing at the end."""
    lasts_s: float = 0.0
    """Sound that was read so far."""
    _libsndfile: soundfile.SoundFile | None = None

    def libsndfile(self) -> soundfile.SoundFile:
        """The source as libsndfile opens it, once: opening an mp3 takes a sixth of the time of decoding it."""
        if self._libsndfile is None:
            file = self.source.file
            file.seek(0)
            # By its number: soundfile itself refuses a name that is not UTF-8.
            opened = cast(BinaryIO, file) if isinstance(file, io.BytesIO) else file.fileno()
            self._libsndfile = soundfile.SoundFile(opened, closefd=False)
        return self._libsndfile

    def close(self) -> None:
        """Give back what libsndfile holds; the source stays open."""
        if self._libsndfile is not None:
            self._libsndfile.close()
            self._libsndfile = None

    def fault(self, cause: str) -> AudioError:
        return AudioError(self.source.label, cause)

    def check(self, channels: int, rate_hz: int) -> None:
        """Refuse what no recording has, before anything is allocated by it."""
        if not 1 <= channels <= MOST_CHANNELS or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise self.fault(
                f"its header states {channels} channels at {rate_hz} Hz; 1 to {MOST_CHANNELS} at {RATES_HZ[0]} to "
                f"{RATES_HZ[1]} Hz are read"
            )
