"""Long recordings in pieces that the model was trained on, cut where it is quietest."""

from __future__ import annotations

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ

_FRAME = SAMPLE_RATE_HZ // 50


def split_at_pauses(samples: np.ndarray, *, max_s: float = 30.0, search_s: float = 10.0) -> list[np.ndarray]:
    """Cut a recording into pieces of at most ``max_s`` seconds.

    Every cut falls on the quietest 20 ms of the last ``search_s`` seconds that a piece may have, so that words stay
    whole. Nothing is dropped: the pieces joined are the recording.

    Args:
        samples: float32 of shape (samples,), mono 16 kHz.
        max_s: longest piece; the encoder saw 30 s at most.
        search_s: how far back to look for a pause.
    """
    longest, search = int(max_s * SAMPLE_RATE_HZ), int(search_s * SAMPLE_RATE_HZ)
    pieces = []
    while len(samples) > longest:
        tail = samples[longest - search : longest]
        frames = tail[: len(tail) // _FRAME * _FRAME].reshape(-1, _FRAME)
        quietest = int(np.square(frames).mean(axis=1).argmin())
        cut = longest - search + quietest * _FRAME + _FRAME // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]
