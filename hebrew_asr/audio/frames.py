"""How many mel frames and audio tokens a clip has: integer arithmetic only, so samplers and plans need no torch.

Numbers of Qwen3-ASR's feature extractor and encoder (transformers, ``models/qwen3_asr``), for a clip on its own. In a
batch the native extractor counts frames differently (12,345 samples: 77 alone, 78 beside a longer clip); here batch
mates never matter, which is also how vLLM serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hebrew_asr.errors import CheckpointError

SAMPLE_RATE_HZ = 16_000
"""Of all sound, once it is decoded."""
N_FFT = SAMPLE_RATE_HZ * 25 // 1000
"""Samples in one analysis window (25 ms)."""
HOP = SAMPLE_RATE_HZ // 100
"""Samples between two mel frames (10 ms)."""
FRAMES_PER_S = SAMPLE_RATE_HZ // HOP
MIN_SAMPLES = SAMPLE_RATE_HZ // 2
"""Shorter clips are zero-padded to this length, and the padding counts as sound."""
MEL_BINS = 128
CHUNK_FRAMES = FRAMES_PER_S
"""Frames that go through the convolutions together (1 s); chunks do not see each other there."""


def _after_convolutions(frames: int) -> int:
    """Length after three convolutions of kernel 3, stride 2, padding 1."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


TOKENS_PER_CHUNK = _after_convolutions(CHUNK_FRAMES)


def num_frames(samples: int) -> int:
    """Mel frames of a clip of ``samples`` samples at 16 kHz, alone in its call of the extractor."""
    return max(samples, MIN_SAMPLES) // HOP


def num_chunks(frames: int) -> int:
    """Chunks of a clip of ``frames`` mel frames, the last of them filled up."""
    return -(-frames // CHUNK_FRAMES)


def num_audio_tokens(frames: int) -> int:
    """Encoder outputs, and so ``<|audio_pad|>`` tokens in the prompt, of a clip of ``frames`` mel frames."""
    chunks, rest = divmod(frames, CHUNK_FRAMES)
    return chunks * TOKENS_PER_CHUNK + _after_convolutions(rest)


def window_tokens(n_window: int, n_window_infer: int) -> int:
    """Tokens in one attention window of the encoder, from the two fields of its configuration.

    ``n_window`` is half a chunk and ``n_window_infer`` a whole window, both in mel frames: 50 and 800 give 104 (8 s).
    """
    return TOKENS_PER_CHUNK * (n_window_infer // (2 * n_window))


@dataclass(frozen=True)
class EncoderGeometry:
    """What packing must know about one model's audio encoder."""

    window_tokens: int = window_tokens(CHUNK_FRAMES // 2, 800)
    """Tokens that attend to each other; a longer clip is cut into windows of this length."""

    @classmethod
    def of(cls, audio_config: Any) -> EncoderGeometry:
        """Read a ``Qwen3ASREncoderConfig``.

        Raises:
            CheckpointError: the encoder cuts its input differently from every published Qwen3-ASR.
        """
        chunk, bins = 2 * audio_config.n_window, audio_config.num_mel_bins
        if (chunk, bins) != (CHUNK_FRAMES, MEL_BINS):
            raise CheckpointError(
                f"the model's audio encoder takes chunks of {chunk} frames and {bins} mel bins; only {CHUNK_FRAMES} and"
                f" {MEL_BINS}, the Qwen3-ASR values, are supported. Is it a Qwen3-ASR checkpoint?"
            )
        return cls(window_tokens(audio_config.n_window, audio_config.n_window_infer))
