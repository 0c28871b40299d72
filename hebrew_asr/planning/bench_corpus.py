"""Clips to measure speed on: noise of speech-like lengths with text of matching length, in real audio files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hebrew_asr.audio.frames import SAMPLE_RATE_HZ
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.text.prompt import build_target

MEAN_S, SHAPE, SHORTEST_S, LONGEST_S = 4.65, 1.9, 0.5, 15.0
"""Gamma distribution of the clips' lengths, as in the crowd corpora (mean 4.4 to 4.9 s, 95 % under 12.5 s)."""
WORDS_PER_S = 2.1
_WORDS = ("אני", "חושב", "שזה", "מה", "שקרה", "אתמול", "כשהגענו", "הביתה", "אחרי", "יום", "ארוך", "של", "עבודה")
_MADE_UP_WORDS = 20_000
_LONGER = 0.33
"""Share of made-up words that are one token with another, which are then three at times."""


def make_corpus(folder: Path, train_clips: int, eval_clips: int = 8, words: Sequence[str] = _WORDS) -> None:
    """Write ``train.jsonl`` and ``eval.jsonl`` with their FLAC files: 16 kHz mono, as preparation leaves them."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train_clips), ("eval", eval_clips)):
        clips = draw_clips(name, count, folder, words)
        with ThreadPoolExecutor() as pool:
            list(pool.map(_write, clips))
        write_manifest(folder / f"{name}.jsonl", clips)


def made_up_words(tokenizer: Any) -> list[str]:
    """Words out of all tokens with Hebrew letters, 1.5 of them each, as the usual ones have; these if there are none.

    How many rows of the head train depends on the tokens that occur, and in a large corpus all of these do.
    """
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    texts = [text for text in texts if any("א" <= letter <= "ת" for letter in text) and "\ufffd" not in text]
    first, later = ([text.strip() for text in texts if text.startswith(" ") == is_first] for is_first in (True, False))
    if not first or not later:
        return [*_WORDS]
    rng = np.random.default_rng(0)
    ends = np.where(rng.random(_MADE_UP_WORDS) < _LONGER, rng.choice(later, _MADE_UP_WORDS), "")
    begins = rng.choice(first, _MADE_UP_WORDS)
    return [begin + end for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def draw_clips(name: str, count: int, folder: Path = Path(), words: Sequence[str] = _WORDS) -> list[Clip]:
    """Clips of a corpus in ``folder``, with their lengths and texts; nothing is written."""
    rng = np.random.default_rng((0, *name.encode()))
    lengths = np.clip(rng.gamma(SHAPE, MEAN_S / SHAPE, count), SHORTEST_S, LONGEST_S)
    counts = np.maximum(1, rng.poisson(WORDS_PER_S * lengths))
    drawn, stops = rng.choice(words, counts.sum()).tolist(), np.cumsum(counts).tolist()
    audio = folder / "clips"
    return [
        Clip(
            f"{audio}/{name}{index}.flac",
            build_target(" ".join(drawn[stop - count : stop])),
            f"{name}{index}",
            int(length * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ,
        )
        for index, (length, count, stop) in enumerate(zip(lengths, counts.tolist(), stops, strict=True))
    ]


def _write(clip: Clip) -> None:
    import soundfile  # not needed where clips are only drawn

    rng = np.random.default_rng(list(clip.id.encode()))
    samples = rng.standard_normal(round(clip.duration_s * SAMPLE_RATE_HZ)) * 3000
    soundfile.write(clip.audio, samples.astype(np.int16), SAMPLE_RATE_HZ)
