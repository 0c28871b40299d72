"""Summed loss of a packed batch, through the layers of the native model.

transformers' own forward pads every clip to the longest, convolves empty chunks, attends window by window with a
host sync each, and computes logits for the whole prompt. Here the same modules run over clips laid end to end.

Submodules are only ever called, and their weights never read, so that ZeRO-3's gathering hooks run. Nothing is set on
the native model (but by ``layered.py``): ``generate`` keeps its own attention. Dropout is not applied; every Qwen3-ASR
config has it at 0.

Dimension letters: T tokens, A audio tokens, C chunks, H hidden size, L supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3ASRForConditionalGeneration
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.model.attention import varlen_attention


class PackedASR(nn.Module):
    """The native model, held as ``asr`` with its own weights, given a forward pass for training on packed batches."""

    def __init__(self, asr: Qwen3ASRForConditionalGeneration) -> None:
        super().__init__()
        self.asr = asr

    def forward(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """Sum of the cross-entropies of all supervised tokens.

        Args:
            batch: clips of :func:`hebrew_asr.data.collate.pack`, on the model's device.
            mel_CBF: (chunks, 128, 100), from :class:`hebrew_asr.audio.mel.LogMel`.

        Returns:
            float32 scalar, not divided by anything.
        """
        logits_LV = self.asr.lm_head(self.hidden_states(batch, mel_CBF))
        return F.cross_entropy(logits_LV.float(), batch.labels_L, reduction="sum")

    def hidden_states(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """What the head reads: (L, H), the normalized hidden state before each target token."""
        language_model = self.asr.model.language_model
        audio_AH = self.audio_embeddings(batch, mel_CBF)
        hidden_TH = language_model.embed_tokens(batch.input_ids_T)
        hidden_TH = hidden_TH.index_copy(0, batch.audio_positions_A, audio_AH)
        rotary = language_model.rotary_emb(hidden_TH[None], batch.position_ids_T[None])
        cos_TD, sin_TD = (part[0] for part in rotary)
        segments = (batch.clip_cu_seqlens_N1, batch.max_clip_tokens)
        *lower, last = language_model.layers
        for layer in lower:
            hidden_TH = self.call(decoder_layer, layer, hidden_TH, cos_TD, sin_TD, segments)
        hidden_LH = self.call(decoder_layer, last, hidden_TH, cos_TD, sin_TD, segments, batch.supervised_positions_L)
        return language_model.norm(hidden_LH)

    def audio_embeddings(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """Projected encoder outputs of all clips, end to end: (A, H).

        Frozen modules at the bottom leave no graph behind, since neither their weights nor their input need gradients.
        Gradient checkpointing's ``enable_input_require_grads`` would undo that: do not turn it on.
        """
        tower = self.asr.model.audio_tower
        segments = (batch.window_cu_seqlens_W1, batch.max_window_tokens)
        hidden_AH = _convolve(tower, mel_CBF).index_select(0, batch.conv_positions_A)
        for layer in tower.layers:
            hidden_AH = self.call(encoder_layer, layer, hidden_AH, segments)
        return self.asr.model.multi_modal_projector(tower.ln_post(hidden_AH))

    def call(self, run: Callable[..., Tensor], layer: Any, hidden: Tensor, *others: Any) -> Tensor:
        """``run``, one of the functions below, on a layer; how that is called is for a subclass to say."""
        return run(layer, hidden, *others)


def _convolve(tower: Any, mel_CBF: Tensor) -> Tensor:
    """Every chunk on its own through the convolutions: (C * 13, H)."""
    hidden = mel_CBF[:, None].to(tower.conv2d1.weight.dtype)
    hidden = F.gelu(tower.conv2d2(F.gelu(tower.conv2d1(hidden))))
    # The last one is three times as fast with channels last, the others are not (cuDNN, bfloat16, H200).
    hidden = F.gelu(tower.conv2d3(hidden.contiguous(memory_format=torch.channels_last)))
    hidden = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    hidden = hidden + tower.positional_embedding(hidden.shape[1]).to(hidden.dtype)
    return hidden.flatten(0, 1)


def encoder_layer(layer: Any, hidden_AH: Tensor, segments: tuple[Tensor, int]) -> Tensor:
    """``Qwen3ASRAudioEncoderLayer.forward`` over packed windows."""
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden_AH)
    heads = (-1, attention.num_heads, attention.head_dim)
    query, key, value = (p(normed).view(heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    attended = varlen_attention(query, key, value, *segments, causal=False, scale=attention.scaling)
    hidden_AH = hidden_AH + attention.out_proj(attended.flatten(1))
    normed = layer.final_layer_norm(hidden_AH)
    return hidden_AH + layer.fc2(layer.activation_fn(layer.fc1(normed)))


def decoder_layer(
    layer: Any,
    hidden_TH: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    segments: tuple[Tensor, int],
    keep: Tensor | None = None,
) -> Tensor:
    """``Qwen3DecoderLayer.forward`` over packed clips; after attention only the positions in ``keep`` go on."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden_TH)
    heads = (normed.shape[0], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(normed).view(heads))
    key = attention.k_norm(attention.k_proj(normed).view(heads))
    value = attention.v_proj(normed).view(heads)
    query, key = apply_rotary_pos_emb(query, key, cos_TD, sin_TD)
    attended = varlen_attention(query, key, value, *segments, causal=True, scale=attention.scaling).flatten(1)
    if keep is not None:
        hidden_TH, attended = hidden_TH.index_select(0, keep), attended.index_select(0, keep)
    hidden_TH = hidden_TH + attention.o_proj(attended)
    return hidden_TH + layer.mlp(layer.post_attention_layernorm(hidden_TH))
