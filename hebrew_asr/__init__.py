"""Fine-tunes Qwen3-ASR for Hebrew by gradual unfreezing on DeepSpeed, and uses what was trained."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``from hebrew_asr import Transcriber`` loads torch only when it is asked for."""
    if name == "Transcriber":
        from hebrew_asr.inference.transcriber import Transcriber

        return Transcriber
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
