"""An engine for the ``ivrit`` package (``pip install ivrit``): what its ``load_model`` gives, with a model of ours.

from hebrew_asr.serving.ivrit_package import load_model
print(load_model(model="runs/round2").transcribe(path="talk.mp3")["text"])
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivrit import TranscriptionModel  # type: ignore[import]
from ivrit.types import Segment  # type: ignore[import]
from ivrit.utils import get_audio_file_path  # type: ignore[import]

from hebrew_asr.inference.transcriber import Transcriber
from hebrew_asr.languages import language_code, language_name


def load_model(*, model: str, device: str = "auto") -> HebrewASRModel:
    """A model whose ``transcribe`` and ``transcribe_async`` are those of the package.

    Args:
        model: folder or hub id, as for ``hebrew-asr transcribe``.
        device: likewise.

    Raises:
        CheckpointError, UsageError: see :func:`hebrew_asr.inference.load.load_transcriber`.
    """
    return HebrewASRModel(model, device)


class HebrewASRModel(TranscriptionModel):
    """Words have no times, and who speaks is not told."""

    def __init__(self, model: str, device: str = "auto"):
        """Load it; see :func:`load_model`."""
        super().__init__("hebrew-asr", model, Transcriber.load(model, device=device))

    def transcribe_core(
        self,
        *,
        path: str | None = None,
        url: str | None = None,
        blob: str | None = None,
        language: str | None = None,
        diarize: bool = False,
        **_others: Any,
    ) -> Iterator[Segment]:
        """Segments of one recording, as the package's ``transcribe`` asks for them.

        Args:
            path: of the recording; or ``url``, or ``blob``: its bytes in base64.
            url: likewise.
            blob: likewise.
            language: name or code; Hebrew unless given.
            diarize: refused, as by the package's own engines that cannot.

        Raises:
            NotImplementedError: ``diarize`` is asked for.
            DataError: it cannot be decoded.
            UsageError: there is no such language.
        """
        if diarize:
            raise NotImplementedError("hebrew-asr does not tell who speaks: diarize=True needs another engine")
        transcriber = self.model_object.in_language(language_name(language)) if language else self.model_object
        asked = {"path": path, "url": url, "blob": blob}
        file = get_audio_file_path(**{name: value for name, value in asked.items() if value is not None})
        try:
            transcript = transcriber.transcribe(file)
        finally:
            if path is None:  # a copy that the package made
                Path(file).unlink(missing_ok=True)
        for segment in transcript.segments:
            told = {"language": language_code(segment.language), "suspect": segment.suspect}
            yield Segment(segment.text, segment.start_s, segment.end_s, extra_data=told)
