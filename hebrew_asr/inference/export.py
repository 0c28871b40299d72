"""Write a trained model as a folder that transformers loads: the native layout, with tokenizer and processor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from hebrew_asr.files import sync_folder
from hebrew_asr.text.prompt import CHAT_TEMPLATE


def save_native(folder: Path, asr: Any, tokenizer: Any) -> None:
    """Write weights, config, generation config, tokenizer and processor; the folder appears when it is whole.

    What else somebody has put into an earlier ``folder`` stays in it.

    Raises:
        OSError or safetensors.SafetensorError: the disk; a folder that was there before is as it was.
    """
    temporary, before = folder.with_name(f".tmp-{folder.name}"), folder.with_name(f".old-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        # Else a model that came from the thinker layout would be written with thinker names under a native config.
        asr.save_pretrained(temporary, save_original_format=False)
        processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE)
        processor.save_pretrained(temporary)
        mode = (temporary / "config.json").stat().st_mode
        for file in temporary.iterdir():
            file.chmod(mode)  # safetensors' own can be read by this user alone
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        for old in (before, folder):
            _keep_others(old, temporary)
        sync_folder(temporary)
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            folder.rename(before)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _keep_others(old: Path, new: Path) -> None:
    for path in sorted(old.iterdir()) if old.is_dir() and not old.is_symlink() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, dirs_exist_ok=True)
        elif not os.path.lexists(new / path.name):
            shutil.copy2(path, new / path.name, follow_symlinks=False)
