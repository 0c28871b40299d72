"""Write a model as a folder that transformers loads: the native layout, with tokenizer and processor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from hebrew_asr.files import as_json, whole_folder
from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.model.layouts import TokenIds
from hebrew_asr.text.prompt import CHAT_TEMPLATE

MAX_NEW_TOKENS = 512
"""As in the published native model. transformers stops after 20 where no number is given; 30 s of speech take 376."""


PIECES = "pieces.json"
"""How long recordings are cut for the model, as :class:`hebrew_asr.inference.pieces.Cutting` has it."""


def save_native(folder: Path, asr: Any, tokenizer: Any, cutting: Cutting | None = None) -> None:
    """Write weights, config, generation config, tokenizer and processor; the folder appears when it is whole.

    What else somebody has put into an earlier ``folder`` stays in it.

    Args:
        folder: to write.
        asr: native model.
        tokenizer: of the model.
        cutting: likewise, if it is known.

    Raises:
        OSError: the disk; a folder that was there before is as it was.
    """
    with whole_folder(folder) as temporary:
        write_native(temporary, asr, tokenizer)
        if cutting is not None:
            write_cutting(temporary, cutting)


def write_native(folder: Path, asr: Any, tokenizer: Any) -> None:
    """The files of :func:`save_native`, into a folder as it is."""
    # Else a model that came from the thinker layout would be written with thinker names under a native config.
    asr.save_pretrained(folder, save_original_format=False)
    generation_config(asr, tokenizer).save_pretrained(folder)
    processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)


def write_cutting(folder: Path, cutting: Cutting) -> None:
    """Into a model folder, from which a copy of it elsewhere is cut for as it is beside its run."""
    (folder / PIECES).write_text(as_json(asdict(cutting)), encoding="utf-8")


def generation_config(asr: Any, tokenizer: Any) -> GenerationConfig:
    """What a model is decoded with by those who do not say: greedily, to either end token, for long enough.

    The published thinker model's own ends at ``<|im_end|>`` alone and gives no number of tokens.
    """
    ids = TokenIds.of(tokenizer)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=asr.generation_config.max_new_tokens or MAX_NEW_TOKENS,
        eos_token_id=[ids.end_of_text, ids.end_of_turn],
        pad_token_id=ids.end_of_text,
    )
