"""An engine for the ivrit.ai leaderboard: ``run_bench.py --engine hebrew_asr/evaluation/leaderboard.py --model DIR``.

Its ``run_bench.py`` (ivrit-ai/asr-training) loads this file by its path, calls ``create_app`` once and what that gives
once a recording. It runs where this package is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import soxr


def create_app(**kwargs: Any) -> Callable[[Mapping[str, Any]], tuple[str, float]]:
    """Load a model, for transcribing one recording a call.

    Args:
        kwargs: ``model_path``, folder or hub id; ``lang``, ``he`` or none, which are Hebrew, or ``auto``. Others are
            taken and not used: the device is a GPU where there is one.

    Returns:
        Takes an entry whose ``audio`` is ``{"array": samples, "sampling_rate": Hz}``, of any length, and gives the text
        and the seconds that it took.
    """
    from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
    from hebrew_asr.evaluation.hearing import Utterance, heard
    from hebrew_asr.inference.load import load_transcriber

    language = kwargs.get("lang") or "Hebrew"
    transcriber = load_transcriber(str(kwargs["model_path"]), "Hebrew" if language == "he" else str(language))

    def transcribe(entry: Mapping[str, Any]) -> tuple[str, float]:
        started = time.monotonic()
        samples = np.asarray(entry["audio"]["array"], dtype=np.float32)
        if samples.ndim == 2:  # (samples, channels) or the other way round, as its reader has it
            samples = samples.mean(axis=int(samples.shape[0] > samples.shape[1]))
        samples = soxr.resample(samples, entry["audio"]["sampling_rate"], SAMPLE_RATE_HZ).astype(np.float32)
        (transcript,) = heard(transcriber, [Utterance("", "", lambda: samples)], 16)
        return transcript.hypothesis, time.monotonic() - started

    return transcribe
