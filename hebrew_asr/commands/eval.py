"""``hebrew-asr eval``: WER and CER of a model on a manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hebrew_asr.config.values import PositiveInt


@dataclass
class Command:
    """Decode a manifest and count word and character errors, by the path that training measures with."""

    model: str
    """Folder or hub id of a Qwen3-ASR model, such as runs/round2/final."""
    data: str
    """Manifest (JSONL), such as qwen3_asr_round2_data/eval.jsonl."""
    mode: Literal["strict", "ivrit", "lenient"] = "strict"
    """Normalizer in which errors are counted."""
    language: str = "Hebrew"
    """Language that the model is told, or auto to let it say."""
    batch: PositiveInt = 32
    """Clips decoded together."""
    hypotheses: str | None = None
    """Also write one JSON object a clip here: id, reference, hypothesis."""
    allow_outside: bool = False
    """Accept audio files outside the manifest's folder."""
    json: bool = False
    """Print the figures as one JSON object."""

    def run(self) -> int:
        from hebrew_asr.data.manifest import read_manifest
        from hebrew_asr.files import write_atomically
        from hebrew_asr.inference.load import load_transcriber
        from hebrew_asr.text.normalize import NORMALIZER_VERSION
        from hebrew_asr.text.wer import ErrorCounts, bootstrap_interval, per_clip_errors
        from hebrew_asr.training.evaluate import transcribe_clips

        clips = read_manifest(self.data, allow_outside=self.allow_outside)
        texts = transcribe_clips(load_transcriber(self.model, self.language), clips, self.batch)
        errors = per_clip_errors([clip.transcript for clip in clips], texts, mode=self.mode)
        total = sum(errors, ErrorCounts())
        low, high = bootstrap_interval(errors, [clip.group or clip.id for clip in clips], seed=0)
        if self.hypotheses:
            rows = (
                {"id": clip.id, "reference": clip.transcript, "hypothesis": text}
                for clip, text in zip(clips, texts, strict=True)
            )
            write_atomically(Path(self.hypotheses), "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        figures = {
            "model": self.model,
            "data": self.data,
            "wer": total.wer,
            "wer_low_95": low,
            "wer_high_95": high,
            "cer": total.cer,
            "wer_mode": self.mode,
            "normaliser": NORMALIZER_VERSION,
            "substitutions": total.substitutions,
            "deletions": total.deletions,
            "insertions": total.insertions,
            "words": total.words,
            "clips": total.clips,
        }
        if self.json:
            print(json.dumps(figures, ensure_ascii=False))
        else:
            print(
                f"WER {total.wer:.2%} (95 % interval by group {low:.2%} to {high:.2%}), CER {total.cer:.2%}, "
                f"{self.mode} normalizer {NORMALIZER_VERSION}, {total.clips} clips: {total.substitutions} "
                f"substitutions, {total.deletions} deletions, {total.insertions} insertions in {total.words} words"
            )
        return 0
