"""``hebrew-asr transcribe``: sound in, text out."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from hebrew_asr.config.options import Language, ModelName
from hebrew_asr.config.values import PositiveInt
from hebrew_asr.units import count

if TYPE_CHECKING:
    from hebrew_asr.inference.formats import Format
    from hebrew_asr.inference.inputs import Input
    from hebrew_asr.inference.long_form import Transcript
    from hebrew_asr.inference.progress import SoundProgress


FORMATS: tuple[Format, ...] = ("txt", "srt", "vtt", "tsv", "json")
_GREEDY = "decoding is greedy, and what cannot have been said is tried again by itself: there is nothing to set"
_SEGMENTS = "times are those of segments: words could not be placed well enough to be told"
_LINES = "subtitles have two lines of at most 42 characters"


@dataclass
class Command:
    """Write down what is said in audio and video files, of any length and number.

    Sound without speech gives no words. What cannot be used is named on stderr, the rest goes on, and the exit code is
    then 3. Without --out, text goes to stdout: one line a file, which begins with the file's name if there are several.

    $ hebrew-asr transcribe --model runs/round2 talk.mp3
    $ hebrew-asr transcribe --model runs/round2 --format srt --out subtitles recordings/
    """

    ELSEWHERE: ClassVar[dict[str, str]] = {
        "task": "what is said is written in the language that it is said in; nothing is translated",
        **dict.fromkeys(("word_timestamps", "highlight_words", "max_words_per_line"), _SEGMENTS),
        **dict.fromkeys(
            ("beam_size", "best_of", "patience", "temperature", "length_penalty", "no_speech_threshold"), _GREEDY
        ),
        **dict.fromkeys(
            ("compression_ratio_threshold", "logprob_threshold", "hallucination_silence_threshold"), _GREEDY
        ),
        **dict.fromkeys(("fp16", "compute_type"), "give --dtype float16, bfloat16 or float32"),
        **dict.fromkeys(("vad_filter", "vad_method"), "speech is always searched for first"),
        **dict.fromkeys(("max_line_width", "max_line_count"), _LINES),
        **dict.fromkeys(("model_dir", "model_directory"), "give --model DIR"),
        "condition_on_previous_text": "it is off unless --condition-on-previous is given, without a value",
        "threads": "set the variable OMP_NUM_THREADS",
        "verbose": "a bar shows progress on a terminal, and text goes to stdout unless --out is given",
    }
    """Options of Whisper's tools that are none here, and what to do."""
    IDLE: ClassVar = (
        *("skip-existing without out", "overwrite without out", "overwrite with skip-existing"),
        "batch with condition-on-previous",
    )

    files: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="FILE|DIR|- …")]
    """Files, folders (with all audio and video below), patterns such as '*.mp3', or - for standard input."""
    model: ModelName
    """Folder or hub id of a Qwen3-ASR model, or the folder of a run, such as demo-run, or of an export."""
    format: Annotated[
        Literal["txt", "srt", "vtt", "tsv", "json", "all"], tyro.conf.arg(aliases=["-f", "--output-format"])
    ] = "txt"
    """What is written: text, subtitles, segments with their times, or all of these."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o", "--output-dir"])] = None
    """Folder to write one file a recording into, such as talk.srt for talk.mp3."""
    skip_existing: bool = False
    """Pass over recordings whose file is already in --out."""
    overwrite: bool = False
    """Replace files that are already in --out; otherwise nothing starts if there are any."""
    language: Language = "Hebrew"
    """Language that is spoken, by name or code (he, iw, Hebrew, en, …), or auto to let the model say."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["--initial-prompt"])] = ""
    """Context: names and terms that occur, in their spelling."""
    condition_on_previous: bool = False
    """Tell the model what was said just before; slower, since pieces are then decoded one by one."""
    batch: Annotated[PositiveInt, tyro.conf.arg(aliases=["--batch-size"])] = 32
    """Pieces decoded together."""
    device: str = "auto"
    """Such as cpu, cuda or cuda:1; auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto is bfloat16 on a GPU and float32 on a CPU."""
    json: bool = False
    """Print one JSON object a file on a line of stdout, with --out too: file, text, language, duration_s, segments."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import make_folder
        from hebrew_asr.errors import DataError, UsageError
        from hebrew_asr.inference.inputs import find_inputs
        from hebrew_asr.languages import language_name

        if not self.files:
            raise UsageError("no audio file given; usage: hebrew-asr transcribe --model DIR FILE…")
        language_name(self.language)  # a wrong name is told before the model is loaded
        inputs, errors = find_inputs(self.files)
        several = len(inputs) > 1
        if self.out is None and self.format == "all":
            raise UsageError(f"--format all writes {len(FORMATS)} files a recording: give --out FOLDER")
        if self.out is None and several and self.format in ("srt", "vtt", "tsv"):
            raise UsageError(f"{len(inputs)} files as one {self.format} would mix their times: give --out FOLDER")
        if self.out is None and self.json and self.format not in ("txt", "json"):
            raise UsageError(f"--json and --format {self.format} would both go to stdout: give --out FOLDER, or one")
        paths = self._paths(inputs)
        if self.skip_existing:
            found, inputs = inputs, [one for one in inputs if not all(path.exists() for path in paths[one.name])]
            print(f"{len(found) - len(inputs)} of {len(found)} recordings were transcribed before", file=sys.stderr)
        if self.out is not None and inputs:
            make_folder(Path(self.out))
        return DataError.exit_code if self._transcribe(inputs, paths, errors, several) else 0

    @property
    def _forms(self) -> tuple[Format, ...]:
        return FORMATS if self.format == "all" else (self.format,)

    def _paths(self, inputs: list[Input]) -> dict[str, tuple[Path, ...]]:
        """The files to write for each input, one a format, where files are written at all."""
        from hebrew_asr.errors import UsageError
        from hebrew_asr.inference.inputs import output_paths

        if self.out is None:
            return {}
        by_form = [output_paths(inputs, Path(self.out), form) for form in self._forms]
        paths = dict(zip((one.name for one in inputs), zip(*by_form, strict=True), strict=True))
        there = [path for path in chain.from_iterable(paths.values()) if path.exists()]
        if folder := next((path for path in there if path.is_dir()), None):
            raise UsageError(f"{folder} is a folder, where a file is to be written: give another --out")
        if there and not (self.skip_existing or self.overwrite):
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise UsageError(
                f"{there[0]}{more} exist{'s' * (len(there) == 1)}: give --skip-existing to keep, --overwrite to replace"
            )
        return paths

    def _transcribe(self, inputs: list[Input], paths: dict[str, tuple[Path, ...]], errors: list, several: bool) -> int:
        """How many names and recordings failed."""
        from hebrew_asr.inference.progress import loading, sound_progress

        for error in errors:
            print(f"error: {_on_a_line(str(error))}", file=sys.stderr)
        if not inputs:
            return len(errors)
        failed, lasts_s = 0, 0.0
        with loading():
            from hebrew_asr.inference.load import load_transcriber
            from hebrew_asr.inference.long_form import Options, transcribe_all

            transcriber = load_transcriber(self.model, self.language, device=self.device, dtype=self.dtype)
        options = Options(self.prompt, self.condition_on_previous, self.batch)
        recordings = ((one.name, one.blocks()) for one in inputs)
        with sound_progress(None) as progress:
            for name, outcome in transcribe_all(transcriber, recordings, options, on_decoded=progress.add):
                failed += self._tell(name, outcome, paths.get(name, ()), several, progress)
                lasts_s += 0.0 if isinstance(outcome, Exception) else outcome.duration_s
            told = f", {failed} of them not transcribed" if failed else ""
            told += f", {progress.pace(lasts_s, 'sound')}" if failed < len(inputs) else ""
            progress.tell(f"{count(len(inputs), 'recording')}{told}")
        return len(errors) + failed

    def _tell(
        self,
        name: str,
        outcome: Transcript | Exception,
        paths: tuple[Path, ...],
        several: bool,
        progress: SoundProgress,
    ) -> bool:
        """Print or write one outcome; returns whether it is a failure."""
        import json

        from hebrew_asr.files import write_atomically
        from hebrew_asr.inference.formats import as_values, formatted

        if isinstance(outcome, Exception):
            progress.tell(f"error: {_on_a_line(str(outcome))}")
            return True
        for form, path in zip(self._forms, paths, strict=False):  # no paths where nothing is written
            write_atomically(path, formatted(outcome, form, name))
        if paths and not self.json:
            return False
        if self.json or (self.format == "json" and several):
            progress.write(f"{json.dumps(as_values(outcome, name), ensure_ascii=False)}\n")
        elif self.format == "txt":
            progress.write(f"{_on_a_line(name)}\t{outcome.text}\n" if several else f"{outcome.text}\n")
        else:
            progress.write(formatted(outcome, self._forms[0], name))
        return False


def _on_a_line(text: str) -> str:
    """A name of a file may hold anything: control characters are written as Python writes them."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)
