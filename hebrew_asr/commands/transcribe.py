"""``hebrew-asr transcribe``: sound in, text out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from hebrew_asr.config.values import PositiveInt


@dataclass
class Command:
    """Print the text of audio files (wav, flac, ogg, opus, mp3), one line a file.

    Files longer than 30 s are cut at their pauses. With several files each line starts with the file's name.
    """

    files: Annotated[list[str], tyro.conf.Positional]
    """Audio files."""
    model: str
    """Folder or hub id of a Qwen3-ASR model, such as runs/round2/final."""
    language: str = "Hebrew"
    """Language that the model is told, or auto to let it say."""
    batch: PositiveInt = 16
    """Pieces decoded together."""
    json: bool = False
    """Print one JSON object a file instead: file, text, duration_s."""

    def run(self) -> int:
        from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, decode
        from hebrew_asr.audio.segment import split_at_pauses
        from hebrew_asr.errors import UsageError
        from hebrew_asr.inference.load import load_transcriber

        if not self.files:
            raise UsageError("no audio file given; usage: hebrew-asr transcribe --model DIR FILE…")
        recordings = [decode(file) for file in self.files]  # a wrong name is told before the model is loaded
        transcribe = load_transcriber(self.model, self.language)
        for file, recording in zip(self.files, recordings, strict=True):
            pieces = split_at_pauses(recording)
            texts = [
                text
                for start in range(0, len(pieces), self.batch)
                for text in transcribe(pieces[start : start + self.batch])
            ]
            text = " ".join(part for part in texts if part)
            if self.json:
                duration_s = round(len(recording) / SAMPLE_RATE_HZ, 3)
                print(
                    json.dumps({"file": file, "text": text, "duration_s": duration_s}, ensure_ascii=False), flush=True
                )
            else:
                print(text if len(self.files) == 1 else f"{file}\t{text}", flush=True)
        return 0
