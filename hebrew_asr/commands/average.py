"""``hebrew-asr average``: the mean of a run's checkpoints, and whether it is better than any of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hebrew_asr.config.values import PositiveInt

if TYPE_CHECKING:
    from hebrew_asr.engine.sealed import Checkpoint


@dataclass
class Command:
    """Average the weights of a run's checkpoints, in float64, and write them as a model in the native layout.

    With --choose the last checkpoint, the best by the run's own WER and the average are each decoded on the whole
    evaluation split, and the one of the lowest WER is written, beside choice.json with all three. The run is left as
    it is: its final/ stays the model of its last step.
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, such as runs/round2."""
    out: Path
    """Folder to make; it must not exist, or be empty."""
    steps: list[PositiveInt] = field(default_factory=list)
    """Of the checkpoints to average; all that the run keeps of its last phase unless given."""
    choose: bool = False
    """Write whichever is best on the whole evaluation split."""
    data: Path | None = None
    """Evaluation manifest for --choose; that of the run unless given."""
    batch: PositiveInt = 32
    """Clips decoded together."""

    def run(self) -> int:
        from hebrew_asr.errors import UsageError
        from hebrew_asr.files import write_json
        from hebrew_asr.inference.export import save_native
        from hebrew_asr.training.from_checkpoint import average_of

        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise UsageError(f"{self.out} is there already and not empty; give --out another name")
        checkpoints = self._checkpoints()
        steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        if not self.choose:
            save_native(self.out, *average_of(self.run_dir, checkpoints))
            print(f"{self.out}: the mean of steps {steps}")
            return 0
        measured, best = self._measured(checkpoints), ""
        for name, found in measured.items():
            told = f"{found['wer']:.2%} ({found['wer_low_95']:.2%} to {found['wer_high_95']:.2%})"
            print(f"{name:<24} WER {told}, {found['wer_mode']} normalizer, {found['clips']} clips")
            best = name if not best or found["wer"] < measured[best]["wer"] else best
        asr, tokenizer = self._candidates(checkpoints)[best]()
        save_native(self.out, asr, tokenizer)
        write_json(self.out / "choice.json", {"chosen": best, "averaged_steps": steps, "candidates": measured})
        print(f"{self.out}: {best}")
        return 0

    def _checkpoints(self) -> list[Checkpoint]:
        from hebrew_asr.engine.optimizer_state import StateReader
        from hebrew_asr.engine.sealed import find_checkpoints
        from hebrew_asr.errors import CheckpointError, UsageError

        found = find_checkpoints(self.run_dir / "checkpoints")
        if not found:
            raise CheckpointError(f"no checkpoint in {self.run_dir / 'checkpoints'}; give the directory of a run")
        if self.steps:
            by_step = {checkpoint.step: checkpoint for checkpoint in found}
            lacking = [step for step in self.steps if step not in by_step]
            if lacking:
                raise UsageError(f"no checkpoint of step {lacking[0]}; there are {', '.join(map(str, by_step))}")
            return [by_step[step] for step in sorted(set(self.steps))]

        def trained(checkpoint: Checkpoint) -> set[str]:
            reader = StateReader(checkpoint.path)
            names = set(reader.parameters())
            reader.close()
            return names

        last = trained(found[-1])
        return [checkpoint for checkpoint in found if trained(checkpoint) == last]

    def _candidates(self, checkpoints: list[Checkpoint]) -> dict[str, Any]:
        """What may be chosen, in order of preference where rates are equal, each as a call that loads it."""
        from functools import partial

        from hebrew_asr.engine.sealed import find_checkpoints
        from hebrew_asr.errors import CheckpointError
        from hebrew_asr.training.from_checkpoint import average_of, best_checkpoint, model_from_checkpoint

        last = find_checkpoints(self.run_dir / "checkpoints")[-1]
        found: dict[str, Any] = {f"last (step {last.step})": partial(model_from_checkpoint, self.run_dir, last)}
        try:
            best = best_checkpoint(self.run_dir)
        except CheckpointError as error:
            print(f"warning: there is no best checkpoint to choose ({error})", file=sys.stderr)
        else:
            if best.step != last.step:
                found[f"best (step {best.step})"] = partial(model_from_checkpoint, self.run_dir, best)
        found[f"mean of {len(checkpoints)} checkpoints"] = partial(average_of, self.run_dir, checkpoints)
        return found

    def _measured(self, checkpoints: list[Checkpoint]) -> dict[str, dict[str, Any]]:
        """Rates of each candidate on the whole split, in the run's normalizer and decoding."""
        import torch

        from hebrew_asr.config.recipe import recipe_from_dict
        from hebrew_asr.data.manifest import read_manifest
        from hebrew_asr.errors import DataError
        from hebrew_asr.inference.evaluating import heard, utterances_of
        from hebrew_asr.inference.progress import sound_progress
        from hebrew_asr.inference.transcriber import Decoding, Transcriber
        from hebrew_asr.text.scoring import errors_of, groups_of, rates
        from hebrew_asr.training.resuming import recipe_before

        recipe = recipe_from_dict(recipe_before(self.run_dir, checkpoints[-1]) or {}, str(self.run_dir))
        manifest = self.data or Path(recipe.data.folder, "eval.jsonl")
        if not manifest.is_file():
            raise DataError(f"the run's evaluation manifest {manifest} is not there; give --data")
        clips = read_manifest(manifest, allow_outside=True)
        settings, device = recipe.evaluation, "cuda" if torch.cuda.is_available() else "cpu"
        decoding = Decoding(max_tokens_per_s=settings.max_tokens_per_s, min_new_tokens=settings.min_new_tokens)
        measured = {}
        for name, load in self._candidates(checkpoints).items():
            asr, tokenizer = load()
            transcribe = Transcriber(asr.to(device).eval(), tokenizer, decoding)
            with sound_progress(sum(clip.duration_s for clip in clips)) as bar:
                transcripts = list(heard(transcribe, utterances_of(clips, ""), self.batch, bar.add, bar.tell))
            errors = errors_of(transcripts, settings.wer_mode)
            measured[name] = {"wer_mode": settings.wer_mode, **rates(errors, groups_of(transcripts))}
            del asr, transcribe
        return measured
