"""Write a trained model as a folder that transformers loads: the native layout, with tokenizer and processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from hebrew_asr.files import sync_folder
from hebrew_asr.model.tiny import CHAT_TEMPLATE


def save_native(folder: Path, asr: Any, tokenizer: Any) -> None:
    """Write weights, config, generation config, tokenizer and processor; the folder appears when it is whole."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    # Else a model that came from the thinker layout would be written with thinker names under a native config.
    asr.save_pretrained(temporary, save_original_format=False)
    processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync_folder(folder.parent)
