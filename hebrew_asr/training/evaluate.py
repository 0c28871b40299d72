"""WER and CER while training: every rank decodes its share; edits and words are summed over ranks, then divided."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow
import torch

from hebrew_asr.config.recipe import Evaluation
from hebrew_asr.data.clip_audio import Unreadable, read_clip
from hebrew_asr.data.clips import Clip, Clips, compute
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import DataError, EnvironmentProblem
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.report.outputs import PatientFiles
from hebrew_asr.report.records import EvalRecord, FaultRecord, Sample
from hebrew_asr.text.normalize import NORMALIZER_VERSION
from hebrew_asr.text.scoring import spread
from hebrew_asr.text.wer import ErrorCounts, per_clip_errors
from hebrew_asr.training.stop_flag import StopFlag

_SHOWN = 3
"""Clips of an evaluation that its record shows."""

Transcribe = Callable[[Sequence[np.ndarray]], list[str]]


def stratified_sample(clips: Sequence[Clip], count: int) -> list[Clip]:
    """``count`` clips spread evenly over durations; the same ones each time, whatever the manifest's order."""
    clips = Clips.of(clips)
    keys = {"duration_s": "ascending", "id": "ascending"}
    columns = pyarrow.table({name: clips.column(name) for name in keys})
    ordered = compute.sort_indices(columns, sort_keys=list(keys.items())).to_numpy()
    if len(ordered) > count:
        ordered = [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]
    return [clips[int(index)] for index in ordered]


def what_is_measured(sample: Sequence[Clip], settings: Evaluation) -> str:
    """Clips, normalizer and decoding of the sample's WER; two rates with the same answer can be compared."""
    content = [[clip.id, clip.transcript] for clip in sample]
    content += [settings.wer_mode, NORMALIZER_VERSION, settings.max_tokens_per_s, settings.min_new_tokens]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return f"sample of {len(sample)} clips, {settings.wer_mode}, {digest[:12]}"


def transcribe_clips(
    transcribe: Transcribe,
    clips: Sequence[Clip],
    batch_clips: int,
    before_batch: Callable[[], None] = lambda: None,
    unreadable: list[str] | None = None,
) -> list[str]:
    """Hypotheses in the order of ``clips``, decoded longest first so that batches hold clips of a length.

    Args:
        transcribe: the one decode path.
        clips: with audio files that can be decoded.
        batch_clips: clips decoded together.
        before_batch: called before each batch; may raise to give up.
        unreadable: takes the reason of each clip that cannot be decoded, whose hypothesis is then empty.

    Raises:
        DataError: an audio file cannot be decoded, and there is no ``unreadable``.
    """
    order = sorted(range(len(clips)), key=lambda index: -clips[index].duration_s)
    texts = [""] * len(clips)
    for start in range(0, len(order), batch_clips):
        before_batch()
        read = {index: _samples(clips[index], unreadable) for index in order[start : start + batch_clips]}
        heard = {index: samples for index, samples in read.items() if samples is not None}
        for index, text in zip(heard, transcribe(list(heard.values())) if heard else [], strict=True):
            texts[index] = text
    return texts


def _samples(clip: Clip, unreadable: list[str] | None) -> np.ndarray | None:
    try:
        read = read_clip(clip)
    except EnvironmentProblem as error:  # raised by this rank alone it would leave the others waiting
        if unreadable is None:
            raise
        read = Unreadable(clip.id, str(error))
    if not isinstance(read, Unreadable):
        return read
    if unreadable is None:
        raise DataError(str(read))
    unreadable.append(str(read))
    return None


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    record: EvalRecord | None
    """None if no clip could be read."""
    fault: FaultRecord | None
    """Which clips could not be read, if some could not."""


class _Stopped(Exception):
    """The run was asked to stop; every rank leaves its evaluation at the same batch."""


class Evaluator:
    """Measures the model in training on an eval split."""

    def __init__(self, tokenizer: Any, settings: Evaluation, ranks: Ranks, files: PatientFiles):
        """``files``: where references and hypotheses are written, ``samples/``, one JSONL file an evaluation."""
        self._decoding = Decoding(max_tokens_per_s=settings.max_tokens_per_s, min_new_tokens=settings.min_new_tokens)
        self._tokenizer, self._settings, self._ranks, self._files = tokenizer, settings, ranks, files

    def __call__(
        self, asr: Any, clips: Sequence[Clip], step: int, split: str, stop: StopFlag, sample_ids: Container[str] = ()
    ) -> Evaluated | None:
        """Decode ``clips`` with ``asr`` over all ranks; collective.

        A clip that cannot be read counts as silence: all its words are deletions. So every evaluation is of the same
        clips and words. If no clip can be read at all, nothing is measured.

        Args:
            asr: the model, whole on this rank.
            clips: all of them, on every rank.
            step: optimizer steps done.
            split: their name in the record.
            stop: asked once per batch.
            sample_ids: clips among them whose WER is also counted by itself.

        Returns:
            None if the run was asked to stop meanwhile.
        """
        own, started = clips[self._ranks.rank :: self._ranks.size], time.monotonic()
        unreadable: list[str] = []
        texts = self._transcribe(asr, clips, stop, unreadable)
        if texts is None:
            return None
        errors = per_clip_errors([clip.transcript for clip in own], texts, mode=self._settings.wer_mode)
        sampled = [counts for clip, counts in zip(own, errors, strict=True) if clip.id in sample_ids]
        sums = [sum(part, ErrorCounts()).to_list() for part in (errors, sampled)]
        total, sample = (ErrorCounts.from_list(row) for row in self._ranks.sum(torch.tensor(sums)).tolist())
        rows = [(clip.id, clip.transcript, text) for clip, text in zip(own, texts, strict=True)]
        of_ranks = self._ranks.gather((rows, unreadable, errors))
        reasons = sorted(reason for _, part, _ in of_ranks for reason in part)
        fault = FaultRecord(step=step, kind="unreadable", split=split, reasons=reasons) if reasons else None
        if len(reasons) == len(clips):
            return Evaluated(None, fault)
        samples = sorted((Sample(*row) for part, _, _ in of_ranks for row in part), key=lambda sample: sample.id)
        self._write_samples(samples, step, split)
        dealt = [clip.group for rank in range(self._ranks.size) for clip in clips[rank :: self._ranks.size]]
        low, high, groups = spread([counts for _, _, part in of_ranks for counts in part], dealt)
        shown = [sample for sample in samples if sample.id in sample_ids] or samples
        record = EvalRecord(
            step=step,
            split=split,
            wer=total.wer,
            cer=total.cer,
            wer_mode=self._settings.wer_mode,
            substitutions=total.substitutions,
            deletions=total.deletions,
            insertions=total.insertions,
            words=total.words,
            clips=total.clips,
            unreadable=len(reasons),
            sample_wer=sample.wer,
            sample_clips=sample.clips,
            wer_low_95=low,
            wer_high_95=high,
            groups=groups,
            eval_s=time.monotonic() - started,
            heard=[shown[int((place + 0.5) * len(shown) / _SHOWN)] for place in range(min(_SHOWN, len(shown)))],
        )
        return Evaluated(record, fault)

    def _transcribe(self, asr: Any, clips: Sequence[Clip], stop: StopFlag, unreadable: list[str]) -> list[str] | None:
        """Hypotheses of this rank's share; None if the run was asked to stop."""
        own = clips[self._ranks.rank :: self._ranks.size]
        # Ranks agree on stopping once per batch, so each asks as often as the one with most batches.
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
            texts = transcribe_clips(transcribe, own, self._settings.batch_clips, ask, unreadable)
            while asked < most:
                ask()
            return texts
        except _Stopped:
            return None
        finally:
            asr.train(training)

    def _write_samples(self, samples: list[Sample], step: int, split: str) -> None:
        if not self._ranks.is_main:
            return
        lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
        self._files.write(f"samples/step-{step:06d}-{split}.jsonl", "".join(f"{line}\n" for line in lines))
