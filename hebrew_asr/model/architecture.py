"""The sizes of Qwen3-ASR-1.7B, for plans that are made without network, weights or a local copy."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from hebrew_asr.errors import UsageError
from hebrew_asr.model.folder import read_config
from hebrew_asr.model.load import build_model

HUB_IDS_1_7B = ("Qwen/Qwen3-ASR-1.7B", "Qwen/Qwen3-ASR-1.7B-hf")


def config_of(path: str) -> Qwen3ASRConfig:
    """The config of a local model folder, or of the published model by its hub id; nothing is downloaded.

    Raises:
        UsageError: ``path`` is neither.
        CheckpointError: the folder is not one of a Qwen3-ASR model.
    """
    if Path(path).is_dir():
        return read_config(Path(path))[0]
    if path in HUB_IDS_1_7B:
        return config_1_7b()
    raise UsageError(
        f"the sizes of model {path!r} are not known here; give a local folder with its config.json, "
        f"or one of {', '.join(HUB_IDS_1_7B)}"
    )


def config_1_7b() -> Qwen3ASRConfig:
    """Sizes from the public ``config.json`` of ``Qwen/Qwen3-ASR-1.7B``."""
    return Qwen3ASRConfig(
        audio_config={
            "d_model": 1024,
            "encoder_layers": 24,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "downsample_hidden_size": 480,
            "output_dim": 2048,
        },
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        audio_token_id=151_676,
        pad_token_id=151_643,
        eos_token_id=[151_643, 151_645],
        tie_word_embeddings=True,
    )


def without_memory(config: Qwen3ASRConfig, dtype: torch.dtype) -> Qwen3ASRForConditionalGeneration:
    """The model on the meta device, in training mode: shapes and data types, no storage."""
    with torch.device("meta"):
        return build_model(config, dtype).train()
