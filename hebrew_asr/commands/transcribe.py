"""``hebrew-asr transcribe``: sound in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hebrew_asr.config.values import PositiveInt

if TYPE_CHECKING:
    from hebrew_asr.inference.inputs import Input
    from hebrew_asr.inference.long_form import Transcript
    from hebrew_asr.inference.progress import SoundProgress


@dataclass
class Command:
    """Write down what is said in audio and video files, of any length and number.

    Sound without speech gives no words. What cannot be used is named on stderr, the rest goes on, and the exit code is
    then 3. Without --out, text goes to stdout: one line a file, which begins with the file's name if there are several.

    $ hebrew-asr transcribe --model runs/round2 talk.mp3
    $ hebrew-asr transcribe --model runs/round2 --format srt --out subtitles recordings/
    """

    files: Annotated[list[str], tyro.conf.Positional]
    """Files, folders (with all audio and video below), patterns such as '*.mp3', or - for standard input."""
    model: str
    """Folder or hub id of a Qwen3-ASR model, or the folder of a run, such as demo-run."""
    format: Literal["txt", "srt", "vtt", "tsv", "json"] = "txt"
    """What is written: text, subtitles, or segments with their times."""
    out: str | None = None
    """Folder to write one file a recording into, such as talk.srt for talk.mp3."""
    skip_existing: bool = False
    """Pass over recordings whose file is already in --out."""
    overwrite: bool = False
    """Replace files that are already in --out; otherwise nothing starts if there are any."""
    language: str = "Hebrew"
    """Language that is spoken, by name or code (he, iw, Hebrew, en, …), or auto to let the model say."""
    prompt: str = ""
    """Context: names and terms that occur, in their spelling."""
    condition_on_previous: bool = False
    """Tell the model what was said just before; slower, since pieces are then decoded one by one."""
    batch: PositiveInt = 16
    """Pieces decoded together."""
    device: str = "auto"
    """Such as cpu, cuda or cuda:1; auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto is bfloat16 on a GPU and float32 on a CPU."""
    json: bool = False
    """Print one JSON object a file on stdout, a line each: file, text, language, duration_s, segments."""

    def run(self) -> int:
        from hebrew_asr.errors import DataError, UsageError
        from hebrew_asr.inference.inputs import find_inputs
        from hebrew_asr.text.languages import language_name

        if not self.files:
            raise UsageError("no audio file given; usage: hebrew-asr transcribe --model DIR FILE…")
        language_name(self.language)  # a wrong name is told before the model is loaded
        inputs, errors = find_inputs(self.files)
        several = len(inputs) > 1
        if self.out is None and several and self.format in ("srt", "vtt", "tsv"):
            raise UsageError(f"{len(inputs)} files as one {self.format} would mix their times: give --out FOLDER")
        if self.out is None and (self.skip_existing or self.overwrite):
            raise UsageError("--skip-existing and --overwrite speak of files in --out FOLDER, which is not given")
        paths = self._paths(inputs)
        if self.skip_existing:
            inputs = [one for one in inputs if not paths[one.name].exists()]
        failed = self._transcribe(inputs, paths, errors, several)
        return DataError.exit_code if failed else 0

    def _paths(self, inputs: list[Input]) -> dict[str, Path]:
        """The file to write for each input, where files are written at all."""
        from hebrew_asr.errors import UsageError
        from hebrew_asr.inference.inputs import output_paths

        if self.out is None:
            return {}
        paths = dict(zip((one.name for one in inputs), output_paths(inputs, Path(self.out), self.format), strict=True))
        there = [str(path) for path in paths.values() if path.exists()]
        if there and not (self.skip_existing or self.overwrite):
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise UsageError(f"{there[0]}{more} exists: --skip-existing keeps such files, --overwrite replaces them")
        return paths

    def _transcribe(self, inputs: list[Input], paths: dict[str, Path], errors: list, several: bool) -> bool:
        """Whether anything failed."""
        from hebrew_asr.inference.load import load_transcriber
        from hebrew_asr.inference.long_form import Options, transcribe_all
        from hebrew_asr.inference.progress import sound_progress

        failed = bool(errors)
        with sound_progress(None) as progress:
            for error in errors:
                progress.tell(f"error: {error}")
            if not inputs:
                return failed
            transcriber = load_transcriber(self.model, self.language, device=self.device, dtype=self.dtype)
            options = Options(self.prompt, self.condition_on_previous, self.batch)
            recordings = ((one.name, one.blocks()) for one in inputs)
            for name, outcome in transcribe_all(transcriber, recordings, options, on_decoded=progress.add):
                failed |= self._tell(name, outcome, paths.get(name), several, progress)
            progress.tell(f"{len(inputs)} recording{'s' * (len(inputs) > 1)}, {progress.pace}")
        return failed

    def _tell(
        self,
        name: str,
        outcome: Transcript | Exception,
        path: Path | None,
        several: bool,
        progress: SoundProgress,
    ) -> bool:
        """Print or write one outcome; returns whether it is a failure."""
        import json

        from hebrew_asr.errors import EnvironmentProblem
        from hebrew_asr.files import write_atomically
        from hebrew_asr.inference.formats import as_values, formatted

        if isinstance(outcome, Exception):
            progress.tell(f"error: {outcome}")
            return True
        if path is not None:
            try:
                write_atomically(path, formatted(outcome, self.format, name))
            except OSError as error:
                raise EnvironmentProblem(f"cannot write {path}: {error.strerror}") from error
        elif self.json or (self.format == "json" and several):
            print(json.dumps(as_values(outcome, name), ensure_ascii=False), flush=True)
        elif self.format == "txt":
            print(f"{name}\t{outcome.text}" if several else outcome.text, flush=True)
        else:
            print(formatted(outcome, self.format, name), end="", flush=True)
        return False
