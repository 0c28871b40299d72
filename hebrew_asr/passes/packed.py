"""Summed loss of a packed batch, through the layers of the native model.

transformers' own forward pads every clip to the longest, convolves empty chunks, attends window by window with a
host sync each, and computes logits for the whole prompt. Here the same modules run over clips laid end to end.

The pass is a row of parts, each a function below that gets its modules as arguments. ``call`` has their weights at
hand (``sharded.py``), and ``run`` runs them: that is what compiling (``compiled.py``) and gathering by DeepSpeed's
hooks (``layered.py``) change. Nothing is set on the native model (but by ``layered.py``): ``generate`` keeps its own
attention. Dropout is not applied; every Qwen3-ASR config has it at 0.

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
from hebrew_asr.passes.attention import Segments, segment_attention
from hebrew_asr.passes.live_tokens import LiveTokens
from hebrew_asr.passes.seam import Seam
from hebrew_asr.passes.sharded import ShardedWeights


class PackedASR(nn.Module):
    """The native model, held as ``asr`` with its own weights, given a forward pass for training on packed batches."""

    def __init__(self, asr: Qwen3ASRForConditionalGeneration) -> None:
        super().__init__()
        self.asr = asr
        self.seam = Seam()
        self.sharded: ShardedWeights | None = None
        """What has the weights, if ranks share them."""
        self.live: LiveTokens | None = None
        """Rows of the head that alone get a gradient, where not all do."""
        self.needs_hooks = False
        """Whether the next passes must run the hooks on weights."""

    @property
    def kept_rows(self) -> dict[Tensor, Tensor]:
        """Weights, and of each the rows, (rows, 1) bool, whose gradients are 0."""
        return {} if self.live is None else {self.asr.lm_head.weight: self.live.absent_V1()}

    def forward(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """Sum of the cross-entropies of all supervised tokens.

        Args:
            batch: clips of :func:`hebrew_asr.data.collate.pack`, on the model's device.
            mel_CBF: (chunks, 128, 100), from :class:`hebrew_asr.audio.mel.LogMel`.

        Returns:
            float32 scalar, not divided by anything.
        """
        self.begin_pass()
        return self.loss(batch, mel_CBF)

    def begin_pass(self) -> None:
        """To be called at the beginning of each."""
        if self.sharded is not None:
            self.sharded.begin_pass()

    def loss(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """What :meth:`forward` returns, of a pass that has begun."""
        hidden_LH = self.hidden_states(batch, mel_CBF)
        return self.call(summed_loss, self.asr.lm_head, hidden_LH, batch.labels_L, self.live)

    def hidden_states(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """What the head reads: (L, H), the normalized hidden state before each target token."""
        language_model = self.asr.model.language_model
        audio_AH = self.audio_embeddings(batch, mel_CBF)
        embedding = language_model.embed_tokens
        hidden_TH = self.call(embed, embedding, batch.input_ids_T, batch.audio_positions_A, audio_AH, self.live)
        rotary = language_model.rotary_emb(hidden_TH[None], batch.position_ids_T[None])
        cos_TD, sin_TD = (part[0] for part in rotary)
        segments = Segments.of(batch.clip_cu_seqlens_N2, len(batch.input_ids_T), batch.opening_tokens)
        last = language_model.layers[-1]
        for layer in language_model.layers:
            keep = (batch.supervised_positions_L,) if layer is last else ()
            hidden_TH = self.enter(layer, hidden_TH)
            hidden_TH = self.call(decoder_layer, layer, hidden_TH, cos_TD, sin_TD, segments, *keep)
        return self.call(apply, language_model.norm, hidden_TH)

    def audio_embeddings(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """Projected encoder outputs of all clips, end to end: (A, H).

        Frozen modules at the bottom leave no graph behind, since neither their weights nor their input need gradients.
        Gradient checkpointing's ``enable_input_require_grads`` would undo that: do not turn it on.
        """
        tower = self.asr.model.audio_tower
        segments = Segments.of(batch.window_cu_seqlens_W1, len(batch.conv_positions_A))
        convolutions = (tower.conv2d1, tower.conv2d2, tower.conv2d3)
        others = (tower.conv_out, tower.positional_embedding)
        hidden_AH = self.call(convolve, *convolutions, *others, mel_CBF, batch.conv_positions_A)
        for layer in tower.layers:
            hidden_AH = self.call(encoder_layer, layer, hidden_AH, segments)
        hidden_AH = self.call(apply, tower.ln_post, hidden_AH)
        return self.call(apply, self.asr.model.multi_modal_projector, hidden_AH)

    def call(self, part: Callable[..., Tensor], module: Any, *inputs: Any) -> Tensor:
        """``part(module, *inputs)``, for one of the functions below."""
        if self.sharded is None:
            return self.run(part, module, *inputs)
        # The gradient of an embedding is made of places alone.
        return self.sharded.run(self.run, part, module, *inputs, rereads=part is not embed)

    def run(self, part: Callable[..., Tensor], module: Any, *inputs: Any) -> Tensor:
        """As :meth:`call`, with the weights at hand; how that is done is for a subclass to say."""
        return part(module, *inputs)

    def enter(self, layer: nn.Module, hidden_TH: Tensor) -> Tensor:
        """What a decoder layer reads; a subclass may cut the pass here."""
        return hidden_TH

    def find_seam(self) -> None:
        """To be called when what trains has changed. Here no pass is ever cut."""

    def release(self) -> None:
        """Let go of what is tied to where the weights lie: they are about to move."""
        if self.sharded is not None:
            self.sharded.give_back()
            self.sharded = None


def apply(module: Any, hidden: Tensor) -> Tensor:
    """A module that needs nothing else."""
    return module(hidden)


def convolve(
    conv1: Any, conv2: Any, conv3: Any, conv_out: Any, positional: Any, mel_CBF: Tensor, conv_positions_A: Tensor
) -> Tensor:
    """Every chunk on its own through the convolutions, and of their outputs those that are sound: (A, H)."""
    hidden = mel_CBF[:, None].to(conv1.weight.dtype)
    is_product = hidden.is_cuda and not conv1.weight.requires_grad
    hidden = F.gelu(first_convolution(conv1, hidden) if is_product else conv1(hidden))
    # cuDNN's fast kernels read channels last. It turns the second one's input round itself, unless it comes so.
    hidden = F.gelu(conv2(hidden))
    hidden = F.gelu(conv3(hidden.contiguous(memory_format=torch.channels_last)))
    hidden = conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
    hidden = hidden + positional(hidden.shape[1]).to(hidden.dtype)
    return hidden.flatten(0, 1).index_select(0, conv_positions_A)


def first_convolution(conv: Any, mel_C1BF: Tensor) -> Tensor:
    """``conv(mel_C1BF)`` as a product of matrices, with channels last: (C, N, rows, columns).

    cuDNN's kernel for one input channel takes 1.5 ms for 64 clips, where this takes 0.4 (H200), and writes channels
    first, which the next convolution has to turn round.
    """
    (rows, columns), (down, right), (above, left) = conv.kernel_size, conv.stride, conv.padding
    padded = F.pad(mel_C1BF[:, 0], (left, left, above, above))
    patches_CBFK = padded.unfold(1, rows, down).unfold(2, columns, right).flatten(3)
    weight_NK = conv.weight.flatten(1)
    more = (0, -weight_NK.shape[1] % 8)  # tensor cores want rows that begin at multiples of 16 bytes (cuBLAS's guide)
    return F.linear(F.pad(patches_CBFK, more), F.pad(weight_NK, more), conv.bias).permute(0, 3, 1, 2)


def embed(
    embedding: Any, input_ids_T: Tensor, audio_positions_A: Tensor, audio_AH: Tensor, live: LiveTokens | None = None
) -> Tensor:
    """What the language model reads: its tokens, with the sound in its place."""
    weight_VH = embedding.weight
    if live is None:
        embedded_TH = F.embedding(input_ids_T, weight_VH, embedding.padding_idx)
    else:
        embedded_TH = live.embedded(input_ids_T, weight_VH)
    return embedded_TH.index_copy(0, audio_positions_A, audio_AH)


def summed_loss(head: Any, hidden_LH: Tensor, labels_L: Tensor, live: LiveTokens | None = None) -> Tensor:
    """float32 scalar; the logits are only there within."""
    weight_VH = head.weight
    logits_LV = F.linear(hidden_LH, weight_VH) if live is None else live.logits(hidden_LH, weight_VH)
    return F.cross_entropy(logits_LV.float(), labels_L, reduction="sum")


def encoder_layer(layer: Any, hidden_AH: Tensor, segments: Segments) -> Tensor:
    """``Qwen3ASRAudioEncoderLayer.forward`` over packed windows."""
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden_AH)
    heads = (-1, attention.num_heads, attention.head_dim)
    query, key, value = (p(normed).view(heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    attended = segment_attention(query, key, value, segments, causal=False, scale=attention.scaling)
    hidden_AH = hidden_AH + attention.out_proj(attended.flatten(1))
    normed = layer.final_layer_norm(hidden_AH)
    return hidden_AH + layer.fc2(layer.activation_fn(layer.fc1(normed)))


def decoder_layer(
    layer: Any,
    hidden_TH: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    segments: Segments,
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
    attended = segment_attention(query, key, value, segments, causal=True, scale=attention.scaling).flatten(1)
    if keep is not None:
        hidden_TH, attended = hidden_TH.index_select(0, keep), attended.index_select(0, keep)
    hidden_TH = hidden_TH + attention.o_proj(attended)
    return hidden_TH + layer.mlp(layer.post_attention_layernorm(hidden_TH))
