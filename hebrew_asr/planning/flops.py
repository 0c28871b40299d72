"""Floating-point operations that a training step needs: what the speed of a card is held against.

Counted from the modules: 2 for each weight and row forward, 2 more where a gradient passes through, and 2 more for each
weight that trains (Kaplan et al. 2020, arXiv 2001.08361, appendix B), plus attention's two products. Logits count at
supervised positions only; nothing is counted for norms, activations and padding. The last layer counts whole, although
the packed pass needs its output projection and MLP at supervised positions only: with 25 labels in 103 tokens, the sum
is 2 % more than what the full-size model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hebrew_asr.audio.frames import CHUNK_FRAMES, MEL_BINS, TOKENS_PER_CHUNK
from hebrew_asr.data.collate import PackedBatch


def step_flops(asr: Any, batches: Sequence[PackedBatch]) -> float:
    """FLOPs of forward and backward over ``batches``, with the parameters' present ``requires_grad``."""
    return sum(_batch_flops(asr, batch) for batch in batches)


def _batch_flops(asr: Any, batch: PackedBatch) -> float:
    tower, language_model = asr.model.audio_tower, asr.model.language_model
    audio, text = asr.config.audio_config, asr.config.text_config
    chunks = sum(-(-count // CHUNK_FRAMES) for count in batch.frames)
    audio_tokens, tokens, labels = sum(batch.audio_tokens), sum(batch.tokens), batch.num_labels
    windows = batch.window_cu_seqlens_W1.diff().cpu()[: _num_windows(batch)].double()
    clips = batch.clip_cu_seqlens_N1.diff().cpu()[: len(batch.tokens)].double()
    encoder_scores = 4.0 * audio.d_model * float(windows.square().sum())
    # Causal: half of the pairs.
    decoder_scores = 2.0 * text.num_attention_heads * text.head_dim * float(clips.square().sum())
    parts = [(_convolutions(tower, chunks), _trains(_stem(tower)))]
    parts += [(2.0 * _weights(layer) * audio_tokens + encoder_scores, _trains([layer])) for layer in tower.layers]
    projector = asr.model.multi_modal_projector
    parts.append((2.0 * _weights(projector) * audio_tokens, _trains([projector, tower.ln_post])))
    parts += [(2.0 * _weights(layer) * tokens + decoder_scores, _trains([layer])) for layer in language_model.layers]
    parts.append((2.0 * asr.lm_head.weight.numel() * labels, _trains([asr.lm_head])))
    total, gradient_passes = 0.0, False
    for forward, trains in parts:
        # Forward; the gradient of the input, if something below trains or a norm of this part, which lies before its
        # matrices; the gradient of the weights, if they train.
        gradient_passes = gradient_passes or trains
        total += forward * (1 + gradient_passes + trains)
    return total


def _num_windows(batch: PackedBatch) -> int:
    bounds = batch.window_cu_seqlens_W1.cpu()
    return int((bounds <= sum(batch.audio_tokens)).sum()) - 1


def _stem(tower: Any) -> list[nn.Module]:
    return [tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out]


def _convolutions(tower: Any, chunks: int) -> float:
    rows, columns, total = MEL_BINS, CHUNK_FRAMES, 0.0
    for layer in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
        total += 2.0 * layer.weight.numel() * rows * columns * chunks
    return total + 2.0 * tower.conv_out.weight.numel() * TOKENS_PER_CHUNK * chunks


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def _trains(modules: Sequence[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())
