"""``hebrew-asr average``: the mean of a run's checkpoints, and whether it is better than any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from hebrew_asr.config.options import Out
from hebrew_asr.config.values import PositiveInt
from hebrew_asr.units import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hebrew_asr.checkpoints.models import Candidate
    from hebrew_asr.checkpoints.sealed import Checkpoint
    from hebrew_asr.config.recipe import Evaluation
    from hebrew_asr.data.manifest import Clip


@dataclass
class Command:
    """Average the weights of a run's checkpoints, in float64, and write them as a model in the native layout.

    With --choose the last checkpoint, the best by the run's own WER and the average are each decoded on the whole
    evaluation split, and the one of the lowest WER is written, beside choice.json with all of them. Training does so
    for final/ (evaluation.choose_final); this is for other checkpoints or clips, and leaves the run as it is.

    $ hebrew-asr average runs/round2 --out mean
    $ hebrew-asr average runs/round2 --steps 5000 6000 --out mean --choose
    """

    IDLE: ClassVar = ("data without choose", "batch without choose")
    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, such as runs/round2."""
    out: Out[Path]
    """Folder to make; it must not exist, or be empty."""
    steps: list[PositiveInt] = field(default_factory=list)
    """Of the checkpoints to average; all that the run keeps of its last phase unless given."""
    choose: bool = False
    """Write whichever is best on the whole evaluation split."""
    data: Path | None = None
    """Evaluation manifest for --choose, or the folder of a set; that of the run unless given."""
    batch: PositiveInt = 32
    """Clips decoded together."""

    def run(self) -> int:
        from hebrew_asr.checkpoints.models import candidates, kept_checkpoints, of_last_phase
        from hebrew_asr.commands.ours import refuse_if_taken
        from hebrew_asr.errors import UsageError

        refuse_if_taken(self.out)
        kept = kept_checkpoints(self.run_dir)
        averaged = self._asked(kept) if self.steps else of_last_phase(kept)
        if len(averaged) < 2 and not self.choose:
            others = ", ".join(str(checkpoint.step) for checkpoint in kept if checkpoint not in averaged)
            more = f"; --steps takes those of any phase, such as {others}" if others else ""
            raise UsageError(
                f"{self.run_dir}: it takes two checkpoints to average, and there is step {averaged[0].step} alone{more}"
            )
        if self.choose:
            self._choose(candidates(self.run_dir, averaged))
        else:
            self._save(averaged)
            print(f"{self.out}: the mean of steps {', '.join(str(checkpoint.step) for checkpoint in averaged)}")
        return 0

    def _asked(self, kept: list[Checkpoint]) -> list[Checkpoint]:
        from hebrew_asr.errors import UsageError

        by_step = {checkpoint.step: checkpoint for checkpoint in kept}
        lacking = [step for step in self.steps if step not in by_step]
        if lacking:
            raise UsageError(f"no checkpoint of step {lacking[0]}; there are {', '.join(map(str, by_step))}")
        return [by_step[step] for step in sorted(set(self.steps))]

    def _choose(self, found: list[Candidate]) -> None:
        from hebrew_asr.files import write_json

        settings, clips = self._split(found[0])
        measured = {candidate.title: self._measured(candidate, settings, clips) for candidate in found}
        for title, rates in measured.items():
            wer = f"{rates['wer']:.2%} ({rates['wer_low_95']:.2%} to {rates['wer_high_95']:.2%})"
            print(f"{title:<24} WER {wer}, {rates['wer_mode']} normalizer, {count(rates['clips'], 'clip')}")
        best = min(found, key=lambda candidate: measured[candidate.title]["wer"])  # the first of equals
        self._save(best.checkpoints)
        write_json(self.out / "choice.json", {"chosen": best.title, "candidates": measured})
        print(f"{self.out}: {best.title}")

    def _save(self, averaged: Sequence[Checkpoint]) -> None:
        from hebrew_asr.checkpoints.models import model_of
        from hebrew_asr.inference.export import save_native
        from hebrew_asr.inference.load import cutting_of_run

        save_native(self.out, *model_of(self.run_dir, averaged), cutting_of_run(self.run_dir))

    def _split(self, last: Candidate) -> tuple[Evaluation, Sequence[Clip]]:
        """How the run evaluated at its last checkpoint, and the clips of the whole split."""
        from hebrew_asr.checkpoints.resuming import recipe_before
        from hebrew_asr.config.recipe import recipe_from_dict
        from hebrew_asr.data.manifest import has_manifest, read_manifest
        from hebrew_asr.errors import DataError
        from hebrew_asr.remote.cache import set_of_run

        recipe = recipe_from_dict(recipe_before(self.run_dir, last.checkpoints[-1]) or {}, str(self.run_dir))
        manifest = self.data or set_of_run(self.run_dir, recipe.data.folder)
        manifest = manifest / "eval.jsonl" if manifest.is_dir() else manifest
        if not has_manifest(manifest):
            raise DataError(f"no evaluation manifest at {manifest}: give --data the run's, or the folder of its set")
        return recipe.evaluation, read_manifest(manifest, allow_outside=True)

    def _measured(self, candidate: Candidate, settings: Evaluation, clips: Sequence[Clip]) -> dict[str, Any]:
        """Rates on the whole split, in the run's normalizer and decoding."""
        import torch

        from hebrew_asr.checkpoints.models import model_of
        from hebrew_asr.evaluation.hearing import heard, utterances_of
        from hebrew_asr.inference.progress import sound_progress
        from hebrew_asr.inference.transcriber import Decoding, Transcriber
        from hebrew_asr.text.scoring import errors_of, groups_of, rates

        decoding = Decoding(max_tokens_per_s=settings.max_tokens_per_s, min_new_tokens=settings.min_new_tokens)
        asr, tokenizer = model_of(self.run_dir, candidate.checkpoints)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        transcribe = Transcriber(asr.to(device).eval(), tokenizer, decoding)
        with sound_progress(sum(clip.duration_s for clip in clips)) as bar:
            transcripts = list(heard(transcribe, utterances_of(clips), self.batch, bar.add, bar.tell))
        return {
            "wer_mode": settings.wer_mode,
            **rates(errors_of(transcripts, settings.wer_mode), groups_of(transcripts)),
        }
