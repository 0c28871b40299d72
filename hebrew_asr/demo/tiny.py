"""A small Qwen3-ASR with random weights: the architecture of the real model, for the demo and the tests.

The classes, the parameter names and the special tokens are those of the public checkpoint; only sizes and vocabulary
differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder
from transformers.utils import logging as transformers_logging

from hebrew_asr.files import give_usual_mode
from hebrew_asr.text.prompt import ASR_TEXT, AUDIO_PAD, CHAT_TEMPLATE, END_OF_TURN, build_target

_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TinySpec:
    """Sizes, named as in ``Qwen3ASREncoderConfig`` (first block) and ``Qwen3Config`` (second block)."""

    d_model: int = 96
    encoder_layers: int = 3
    encoder_attention_heads: int = 4
    encoder_ffn_dim: int = 192
    downsample_hidden_size: int = 16

    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 256

    vocabulary: int = 1024
    """Most tokens of the byte-level BPE, its 256 bytes included, special tokens not."""
    initializer_range: float = 0.05
    """Standard deviation of the weights; 0.02 of the real model is too little for layers this narrow."""


def build_tiny(
    spec: TinySpec, transcripts: Iterable[str], seed: int
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen2Tokenizer]:
    """Make the model in float32, with weights that depend only on ``spec``, the vocabulary and ``seed``.

    Args:
        spec: sizes.
        transcripts: text on which the tokenizer is trained.
        seed: of the weights; the global generator of torch is left as it was.
    """
    tokenizer = _train_tokenizer(transcripts, spec.vocabulary)
    return tiny_model(spec, tokenizer, seed), tokenizer


def tiny_model(spec: TinySpec, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen3ASRForConditionalGeneration:
    """As :func:`build_tiny`, for a tokenizer that there is, such as the published one with its 151,705 tokens."""
    config = _config(spec, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ASRForConditionalGeneration(config)
        _scale_stem(model.model.audio_tower)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=512,
        eos_token_id=[tokenizer.pad_token_id, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def save_tiny(folder: str | Path, spec: TinySpec, transcripts: Iterable[str], seed: int) -> None:
    """Write a model directory in the native layout of transformers: weights, configs, tokenizer, chat template."""
    model, tokenizer = build_tiny(spec, transcripts, seed)
    transformers_logging.disable_progress_bar()  # of one file, written at once
    model.save_pretrained(folder)
    for weights in Path(folder).glob("*.safetensors"):
        give_usual_mode(weights)
    processor = Qwen3ASRProcessor(
        feature_extractor=Qwen3ASRFeatureExtractor(), tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(folder)


def _train_tokenizer(transcripts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE with the pre-tokenizer and the special tokens of Qwen2; frequent words become one token."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.decoder = decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    roles = ["system\n", "user\n", "assistant\n"]
    texts = [piece for text in transcripts for piece in (*roles, *build_target(text).split(ASR_TEXT))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in trained["merges"]]  # the annotation knows file names only
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        eos_token=END_OF_TURN,
        pad_token=_END_OF_TEXT,
        extra_special_tokens={
            "audio_token": AUDIO_PAD,
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True, normalized=False)], special_tokens=True)
    # Not special: decoding that skips special tokens must keep the border between language and transcript.
    tokenizer.add_tokens([AddedToken(ASR_TEXT, special=False, normalized=False)])
    return tokenizer


def _config(spec: TinySpec, tokenizer: Qwen2Tokenizer) -> Qwen3ASRConfig:
    pad, end_of_turn = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert pad != end_of_turn
    return Qwen3ASRConfig(
        audio_config={
            "d_model": spec.d_model,
            "encoder_layers": spec.encoder_layers,
            "encoder_attention_heads": spec.encoder_attention_heads,
            "encoder_ffn_dim": spec.encoder_ffn_dim,
            "downsample_hidden_size": spec.downsample_hidden_size,
            "output_dim": spec.hidden_size,
            "initializer_range": spec.initializer_range,
        },
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.num_hidden_layers,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "intermediate_size": spec.intermediate_size,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,  # read by qwen-asr and vLLM; transformers reads the outer one
            "initializer_range": spec.initializer_range,
            "pad_token_id": pad,
            "eos_token_id": end_of_turn,
        },
        audio_token_id=tokenizer.get_added_vocab()[AUDIO_PAD],
        pad_token_id=pad,
        eos_token_id=[pad, end_of_turn],
        tie_word_embeddings=True,
        initializer_range=spec.initializer_range,
    )


def _scale_stem(audio_tower: Qwen3ASREncoder) -> None:
    """Give the frozen convolutions He initialization (He et al. 2015), which keeps the size of the signal.

    With the usual 0.02 the sound would reach the encoder a thousand times weaker than the position embedding.
    """
    for layer in (audio_tower.conv2d1, audio_tower.conv2d2, audio_tower.conv2d3, audio_tower.conv_out):
        nn.init.kaiming_normal_(layer.weight)
