"""``hebrew-asr eval``: WER and CER of a model on a manifest, or on the leaderboard's sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from hebrew_asr.config.options import Language, ModelName, Out
from hebrew_asr.config.values import PositiveInt

if TYPE_CHECKING:
    from hebrew_asr.evaluation.hearing import Utterance
    from hebrew_asr.inference.transcriber import Transcriber
    from hebrew_asr.text.scoring import Transcript


@dataclass
class Command:
    """Decode recordings and count word and character errors, by the path that training measures with.

    Every rate is told in three normalizers, each by its name: ivrit (the leaderboard's), strict and lenient; and of
    each source, where there are several: the sets of --set, or what the ids of clips name before their first slash.

    $ hebrew-asr eval --model runs/round2 --data mine/eval.jsonl --out heard
    $ hebrew-asr eval --model runs/round2 --set eval-d1 --set saspeech=copies/saspeech
    """

    IDLE: ClassVar = ("allow-outside without data", "mode without json or out")
    model: ModelName
    """Folder or hub id of a Qwen3-ASR model, such as runs/round2/final, or a run directory that holds a final/."""
    data: str | None = None
    """Manifest (JSONL), such as qwen3_asr_round2_data/eval.jsonl, or the folder of a set, whose eval.jsonl is taken;
    or the URL of either."""
    set: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """A set of the Hebrew leaderboard: eval-d1, eval-whatsapp, saspeech, fleurs, common-voice, hebrew-speech-kan; or
    NAME=PATH, or PATH of a copy here (parquet). May be given again."""
    out: Out[Path | None] = None
    """Folder for hypotheses.jsonl, figures.json, clips.csv and clips.html. What it holds of the same model on the same
    clips is written anew; of anything else it stays, and another folder has to be named."""
    mode: Literal["strict", "ivrit", "lenient"] = "strict"
    """Normalizer of the rates that --json gives outside "modes"."""
    language: Language = "Hebrew"
    """Language that the model is told, or auto to let it say."""
    batch: PositiveInt = 32
    """Clips decoded together."""
    device: str = "auto"
    """Such as cpu, cuda:1, or several that share the clips: cuda:0,cuda:1. auto takes all GPUs, else the CPU."""
    hypotheses: Path | None = None
    """Also write one JSON object a clip here: id, reference, hypothesis, and what is known of the clip."""
    allow_outside: bool = False
    """Accept audio files outside the manifest's folder."""
    json: bool = False
    """Print the figures as one JSON object."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import make_folder, refuse_other_results, refuse_overwriting
        from hebrew_asr.errors import DataError, UsageError
        from hebrew_asr.evaluation.devices import heard_on
        from hebrew_asr.evaluation.hearing import LONG, UNREADABLE
        from hebrew_asr.inference.load import devices_of
        from hebrew_asr.inference.progress import loading, sound_progress
        from hebrew_asr.languages import language_name
        from hebrew_asr.text.scoring import figures

        if bool(self.data) == bool(self.set):
            not_both = ", not both" * bool(self.data)
            raise UsageError(f"give --data, a manifest, or --set, one or more sets of the leaderboard{not_both}")
        utterances, total_s = self._utterances()
        of = {"model": self.model, "data": self.data or self.set, "language": language_name(self.language) or "auto"}
        if self.out is not None:
            refuse_other_results(self.out, of)
            make_folder(self.out)
        if self.hypotheses is not None:
            refuse_overwriting(self.hypotheses, '"hypothesis": ')
            make_folder(self.hypotheses.parent)
        sounds = {one.id: one.audio for one in utterances if one.audio} if self.data else {}
        with loading():
            devices = devices_of(self.device)
        with sound_progress(total_s) as progress:
            found = list(heard_on(devices, self._loaded, self._opened, self.batch, progress.add, progress.tell))
        if not found:
            raise DataError("the sets hold no clips")
        found.sort(key=lambda transcript: transcript.id)
        self._write_hypotheses(found)
        counted = figures(found)
        own_mode = {key: value for key, value in counted["modes"][self.mode].items() if key != "slices"}
        long, unreadable = ([t for t in found if t.note.startswith(begins)] for begins in (LONG, UNREADABLE))
        apart = {"longer_than_30_s": len(long), "unreadable": len(unreadable)}
        told: dict[str, Any] = {**of, **counted, "wer_mode": self.mode, **own_mode, **apart}
        self._tell(found, told, sounds)
        if long:
            print(f"{len(long)} of {len(found)} clips, longer than 30 s, were heard as long ones", file=sys.stderr)
        if unreadable:
            print(f"warning: {len(unreadable)} of {len(found)} clips could not be read", file=sys.stderr)
        return DataError.exit_code if unreadable else 0

    def _loaded(self, device: str) -> Transcriber:
        from hebrew_asr.inference.load import load_transcriber

        return load_transcriber(self.model, self.language, device=device)

    def _opened(self) -> Iterator[Utterance]:
        return self._utterances()[0]

    def _utterances(self) -> tuple[Iterator[Utterance], float | None]:
        """All of them, and their seconds where those are known."""
        from itertools import chain

        from hebrew_asr.data.manifest import read_manifest
        from hebrew_asr.evaluation.hearing import utterances_of
        from hebrew_asr.evaluation.test_sets import open_test_set
        from hebrew_asr.remote.cache import set_folder
        from hebrew_asr.remote.paths import is_url

        if self.data is not None:
            if Path(self.data).is_dir() or (is_url(self.data) and not self.data.endswith((".jsonl", ".arrow"))):
                self.data = f"{self.data.rstrip('/')}/eval.jsonl"
            folder, _, name = self.data.rpartition("/")
            manifest = set_folder(folder) / name if is_url(self.data) else self.data
            clips = read_manifest(manifest, allow_outside=self.allow_outside)
            return iter(utterances_of(clips)), sum(clip.duration_s for clip in clips)
        return chain.from_iterable([open_test_set(spec) for spec in self.set]), None

    def _write_hypotheses(self, found: list[Transcript]) -> None:
        """Before anything is counted: hours of decoding are not lost to a mistake in a table."""
        from hebrew_asr.files import write_atomically
        from hebrew_asr.text.transcripts import HYPOTHESES, as_json_lines

        for path in (self.hypotheses, self.out and self.out / HYPOTHESES):
            if path is not None:
                write_atomically(path, as_json_lines(found))

    def _tell(self, found: list[Transcript], told: dict[str, Any], sounds: dict[str, str]) -> None:
        from hebrew_asr.pages.document import address
        from hebrew_asr.report.clip_page import figures_text, write_results

        if self.out is not None:
            addresses = {key: address(file, self.out) for key, file in sounds.items()}
            write_results(self.out, found, told, f"{self.model} on {self.data or ', '.join(self.set)}", addresses)
        print(json.dumps(told, ensure_ascii=False) if self.json else figures_text(told))
