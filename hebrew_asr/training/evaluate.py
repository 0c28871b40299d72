"""WER and CER while training: every rank decodes its share, edits and words are summed before dividing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hebrew_asr.audio.decode import decode
from hebrew_asr.data.manifest import Clip
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.signals import StopFlag
from hebrew_asr.model.generate import Decoding, Transcriber
from hebrew_asr.recipe import Evaluation
from hebrew_asr.text.wer import ErrorCounts, count_errors
from hebrew_asr.training.outputs import PatientFiles

Transcribe = Callable[[Sequence[np.ndarray]], list[str]]


def stratified_sample(clips: Sequence[Clip], count: int) -> list[Clip]:
    """``count`` clips spread evenly over durations; the same ones each time, whatever the manifest's order."""
    ordered = sorted(clips, key=lambda clip: (clip.duration_s, clip.id))
    if len(ordered) <= count:
        return ordered
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


def transcribe_clips(
    transcribe: Transcribe, clips: Sequence[Clip], batch_clips: int, before_batch: Callable[[], None] = lambda: None
) -> list[str]:
    """Hypotheses in the order of ``clips``, decoded longest first so that batches hold clips of a length.

    Args:
        transcribe: the one decode path.
        clips: with audio files that can be decoded.
        batch_clips: clips decoded together.
        before_batch: called before each batch; may raise to give up.

    Raises:
        DataError: an audio file cannot be decoded; nothing is skipped.
    """
    order = sorted(range(len(clips)), key=lambda index: -clips[index].duration_s)
    texts = [""] * len(clips)
    for start in range(0, len(order), batch_clips):
        before_batch()
        chosen = order[start : start + batch_clips]
        for index, text in zip(chosen, transcribe([decode(clips[i].audio) for i in chosen]), strict=True):
            texts[index] = text
    return texts


class _Stopped(Exception):
    """The run was asked to stop; every rank leaves its evaluation at the same batch."""


class Evaluator:
    """Measures the model in training on an eval split."""

    def __init__(self, tokenizer: Any, settings: Evaluation, ranks: Ranks, files: PatientFiles):
        """``files``: where references and hypotheses are written, ``samples/``, one JSONL file an evaluation."""
        self._decoding = Decoding(max_tokens_per_s=settings.max_tokens_per_s, min_new_tokens=settings.min_new_tokens)
        self._tokenizer, self._settings, self._ranks, self._files = tokenizer, settings, ranks, files

    def __call__(self, asr: Any, clips: Sequence[Clip], step: int, split: str, stop: StopFlag) -> dict[str, Any] | None:
        """Decode ``clips`` with ``asr`` over all ranks; collective.

        Returns:
            An ``eval`` record of the metrics schema; None if the run was asked to stop meanwhile.
        """
        own = clips[self._ranks.rank :: self._ranks.size]
        # Ranks agree on stopping once a batch, so each asks as often as the one with most batches.
        most = -(-len(clips[:: self._ranks.size]) // self._settings.batch_clips)
        asked = 0

        def ask() -> None:
            nonlocal asked
            asked += 1
            if stop.agreed():
                raise _Stopped

        training = asr.training
        asr.eval()
        transcribe = Transcriber(asr, self._tokenizer, self._decoding)
        try:
            texts = transcribe_clips(transcribe, own, self._settings.batch_clips, ask)
            while asked < most:
                ask()
        except _Stopped:
            return None
        finally:
            asr.train(training)
        counts = count_errors([clip.transcript for clip in own], texts, mode=self._settings.wer_mode)
        total = ErrorCounts.from_list(self._ranks.sum(torch.tensor(counts.to_list())).tolist())
        rows = [(clip.id, clip.transcript, text) for clip, text in zip(own, texts, strict=True)]
        self._write_samples(self._ranks.gather(rows), step, split)
        return {
            "event": "eval",
            "step": step,
            "split": split,
            "wer": total.wer,
            "cer": total.cer,
            "wer_mode": self._settings.wer_mode,
            "substitutions": total.substitutions,
            "deletions": total.deletions,
            "insertions": total.insertions,
            "words": total.words,
            "clips": total.clips,
        }

    def _write_samples(self, rows_by_rank: list[list[tuple[str, str, str]]], step: int, split: str) -> None:
        if not self._ranks.is_main:
            return
        import json

        rows = sorted(row for rows in rows_by_rank for row in rows)
        lines = [json.dumps({"id": i, "reference": r, "hypothesis": h}, ensure_ascii=False) for i, r, h in rows]
        self._files.write(f"samples/step-{step:06d}-{split}.jsonl", "".join(f"{line}\n" for line in lines))
