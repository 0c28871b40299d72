"""WER and CER while training: every rank decodes its share; edits and words are summed over ranks, then divided."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow
import torch

from hebrew_asr.config.recipe import Evaluation
from hebrew_asr.data.clip_audio import Unreadable, read_ahead, read_clip
from hebrew_asr.data.clips import Clip, Clips, compute
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.stop_flag import StopFlag
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.report.outputs import PatientFiles
from hebrew_asr.report.records import EvalRecord, FaultRecord, Sample
from hebrew_asr.text.normalize import NORMALIZER_VERSION
from hebrew_asr.text.scoring import spread
from hebrew_asr.text.sets import sets_of
from hebrew_asr.text.wer import ErrorCounts, errors_by, per_clip_errors

_COUNTED = ("wer", "cer", "substitutions", "deletions", "insertions", "words", "clips")
"""Fields of a record that are those of its counts."""
_SHARE, _ON_CPU = 0.1, 32
"""Of a GPU's memory, what decoding may take: training holds the rest. And how many clips a CPU decodes together."""
_READERS = 4
"""Threads that read clips. Four of them take a third of the time of one, and twelve more than four (16 cores)."""
_SHOWN = 3
"""Clips of an evaluation that its record shows."""


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


def _memory_bytes(device: torch.device) -> int:
    """All that a GPU has, so that batches do not depend on what is in use; 0 for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def _read(clips: Sequence[Clip], unreadable: list[str], readers: Executor) -> list[np.ndarray | None]:
    """Of each clip what :func:`_samples` gives."""
    read_ahead(clips)
    return list(readers.map(partial(_samples, unreadable=unreadable), clips))


def _samples(clip: Clip, unreadable: list[str]) -> np.ndarray | None:
    """A clip's sound; None, with the reason added to ``unreadable``, if it cannot be decoded."""
    try:
        read = read_clip(clip)
    except EnvironmentProblem as error:  # raised by this rank alone it would leave the others waiting
        read = Unreadable(clip.id, str(error))
    if not isinstance(read, Unreadable):
        return read
    unreadable.append(str(read))
    return None


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    record: EvalRecord | None
    """None if no clip could be read."""
    fault: FaultRecord | None
    """Which clips could not be read, if some could not."""


class Evaluator:
    """Measures the model in training on an eval split."""

    def __init__(self, tokenizer: Any, settings: Evaluation, split: Clips, ranks: Ranks, files: PatientFiles):
        """``files``: where references and hypotheses are written, ``samples/``, one JSONL file an evaluation."""
        self.sample = stratified_sample(split, settings.sample_clips)
        """What is measured every few steps, and counted by itself where it is among others."""
        self._sample_ids = {clip.id for clip in self.sample}
        self._decoding = Decoding(max_tokens_per_s=settings.max_tokens_per_s, min_new_tokens=settings.min_new_tokens)
        self._tokenizer, self._settings, self._ranks, self._files = tokenizer, settings, ranks, files

    def __call__(self, asr: Any, clips: Sequence[Clip], step: int, split: str, stop: StopFlag) -> Evaluated | None:
        """Decode ``clips`` with ``asr`` over all ranks; collective.

        A clip that cannot be read counts as silence: all its words are deletions. So every evaluation is of the same
        clips and words. If no clip can be read at all, nothing is measured.

        Args:
            asr: the model, whole on this rank.
            clips: all of them, on every rank.
            step: optimizer steps done.
            split: their name in the record.
            stop: asked once per batch.

        Returns:
            None if the run was asked to stop meanwhile.
        """
        started, unreadable = time.monotonic(), list[str]()
        own, longest_s = self._share(clips)
        texts = self._transcribe(asr, own, longest_s, stop, unreadable)
        if texts is None:
            return None
        errors = per_clip_errors([clip.transcript for clip in own], texts, self._settings.wer_mode)
        rows = [
            (Sample(clip.id, clip.transcript, text), clip.group, counts)
            for clip, text, counts in zip(own, texts, errors, strict=True)
        ]
        of_ranks = self._ranks.gather((rows, unreadable))
        reasons = sorted(reason for _, part in of_ranks for reason in part)
        fault = FaultRecord(step=step, kind="unreadable", split=split, reasons=reasons) if reasons else None
        if len(reasons) == len(clips):
            return Evaluated(None, fault)
        rows = [row for part, _ in of_ranks for row in part]
        errors = [counts for _, _, counts in rows]
        total = sum(errors, ErrorCounts())
        sampled = sum((counts for sample, _, counts in rows if sample.id in self._sample_ids), ErrorCounts())
        sets = sets_of([sample.id for sample, _, _ in rows])
        low, high, groups = spread(errors, [group for _, group, _ in rows])
        samples = sorted((sample for sample, _, _ in rows), key=lambda sample: sample.id)
        self._write_samples(samples, step, split)
        shown = [sample for sample in samples if sample.id in self._sample_ids] or samples
        record = EvalRecord(
            step=step,
            split=split,
            wer_mode=self._settings.wer_mode,
            **{name: getattr(total, name) for name in _COUNTED},
            unreadable=len(reasons),
            sample_wer=sampled.wer,
            sample_clips=sampled.clips,
            wer_low_95=low,
            wer_high_95=high,
            wer_by_set=None if sets is None else {name: one.wer for name, one in errors_by(sets, errors).items()},
            groups=groups,
            eval_s=time.monotonic() - started,
            heard=[shown[int((place + 0.5) * len(shown) / _SHOWN)] for place in range(min(_SHOWN, len(shown)))],
        )
        return Evaluated(record, fault)

    def try_longest(self, asr: Any, clips: Sequence[Clip], stop: StopFlag) -> int:
        """Decode the first batch of an evaluation of ``clips``, which takes most memory; collective.

        Returns:
            This rank's clips in it that could be read.

        Raises:
            EnvironmentProblem: not even one clip fits, on this rank.
        """
        unreadable = list[str]()
        texts = self._transcribe(asr, *self._share(clips), stop, unreadable, most_batches=1)
        return 0 if texts is None else len(texts) - len(unreadable)

    def _share(self, clips: Sequence[Clip]) -> tuple[list[Clip], np.ndarray]:
        """This rank's clips, the longest first, and the seconds of rank 0's, which are the longest in every place."""
        durations_s = Clips.of(clips).durations_s
        order = np.argsort(-durations_s, kind="stable")  # so that batches hold clips of a length, and ranks as much
        own = [clips[int(index)] for index in order[self._ranks.rank :: self._ranks.size]]
        return own, durations_s[order[:: self._ranks.size]]

    def _transcribe(
        self,
        asr: Any,
        own: list[Clip],
        longest_s: np.ndarray,
        stop: StopFlag,
        unreadable: list[str],
        most_batches: int | None = None,
    ) -> list[str] | None:
        """Hypotheses of this rank's share, the longest clips first; None if the run was asked to stop.

        Batches are cut by rank 0's clips, so ranks have as many, and agree on stopping once per batch. A batch is read
        while the one before is decoded.
        """
        texts, training = [], asr.training
        transcribe = Transcriber(asr, self._tokenizer, self._decoding)
        batches = [own[start:end] for start, end in pairwise(self._cuts(transcribe, longest_s))]
        first, *others = batches[:most_batches]
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as aside:
            asr.eval()
            try:
                reading = aside.submit(_read, first, unreadable, readers)
                for following in [*others, []]:
                    if stop.agreed():
                        return None
                    read, reading = reading.result(), aside.submit(_read, following, unreadable, readers)
                    heard = [samples for samples in read if samples is not None]
                    found = iter(transcribe(heard) if heard else [])
                    texts += ["" if samples is None else next(found) for samples in read]
                return texts
            finally:
                asr.train(training)

    def _cuts(self, transcribe: Transcriber, longest_s: np.ndarray) -> list[int]:
        """Where batches of clips of these lengths, longest first, begin and end; collective."""
        size, memory = self._settings.batch_clips, 0
        if size is None:
            memory = min(self._ranks.gather(_memory_bytes(self._ranks.device)))
        cuts = [0]
        while cuts[-1] < len(longest_s):
            most = transcribe.most_within(int(_SHARE * memory), longest_s[cuts[-1]]) if memory else size or _ON_CPU
            cuts.append(min(cuts[-1] + most, len(longest_s)))
        return cuts

    def _write_samples(self, samples: list[Sample], step: int, split: str) -> None:
        if not self._ranks.is_main:
            return
        lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
        self._files.write(f"samples/step-{step:06d}-{split}.jsonl", "".join(f"{line}\n" for line in lines))
