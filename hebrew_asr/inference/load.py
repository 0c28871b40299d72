"""A model folder ready to transcribe with, on the best device there is."""

from __future__ import annotations

from typing import Any

from hebrew_asr.inference.transcriber import Decoding, Transcriber


def load_transcriber(model: str, language: str) -> Transcriber:
    """Load a model for inference: bf16 on a GPU, fp32 on a CPU.

    Args:
        model: folder or hub id, either layout.
        language: forced language name, or ``auto``.

    Raises:
        CheckpointError: the folder is no whole Qwen3-ASR model.
    """
    import torch

    from hebrew_asr.config.recipe import Model
    from hebrew_asr.model.load import load_model, load_tokenizer

    on_gpu = torch.cuda.is_available()
    tokenizer = load_tokenizer(model)
    asr: Any = load_model(Model(path=model), dtype=torch.bfloat16 if on_gpu else torch.float32)
    asr = asr.to("cuda" if on_gpu else "cpu").eval()
    return Transcriber(asr, tokenizer, Decoding(language=None if language == "auto" else language))
