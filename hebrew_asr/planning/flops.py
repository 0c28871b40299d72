"""Floating-point operations that a training step needs: what the speed of a card is held against.

Counted from the weights' shapes: 2 for each weight and row forward, 2 more where a gradient passes through, and 2 more
for each weight that trains (Kaplan et al. 2020, arXiv 2001.08361, appendix B), plus attention's two products. Logits
count at supervised positions only; nothing is counted for norms, activations and padding. The last layer counts whole,
although the packed pass needs its output projection and MLP at supervised positions only: with 25 labels in 103 tokens,
the sum is 2 % more than what the full-size model does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hebrew_asr.audio.frames import CHUNK_FRAMES, MEL_BINS, TOKENS_PER_CHUNK, num_chunks
from hebrew_asr.data.shapes import Shape
from hebrew_asr.model.sizes import EMBEDDING, HEAD, ModelSizes, weight_shapes

if TYPE_CHECKING:
    from hebrew_asr.data.collate import PackedBatch


@dataclass(frozen=True)
class Work:
    """What passes through the model: rows of its parts, and pairs of rows that attend to each other."""

    chunks: int
    audio_tokens: int
    tokens: int
    labels: int
    window_pairs: float
    """Pairs of audio tokens in the same window of the encoder, in both orders."""
    clip_pairs: float
    """Pairs of tokens in the same clip, in both orders; causal attention needs half of them. The opening, which all
    clips share, is in each, but its pairs with itself are there once."""

    @classmethod
    def of_batch(cls, batch: PackedBatch) -> Work:
        """What the clips of a batch need, without its padding."""
        chunks = sum(map(num_chunks, batch.frames))
        bounds, audio_tokens = batch.window_cu_seqlens_W1.tolist(), sum(batch.audio_tokens)
        windows = [stop - start for start, stop in pairwise(bounds) if stop <= audio_tokens]
        bounds = batch.clip_cu_seqlens_N2.tolist()[: len(batch.tokens) + 2]
        opening, *clips = (stop - start for start, stop in pairwise(bounds))
        in_clips = opening**2 + sum(size**2 + 2 * size * opening for size in clips)
        pairs = float(sum(size**2 for size in windows)), float(in_clips)
        return cls(chunks, audio_tokens, batch.opening_tokens + sum(batch.tokens), batch.num_labels, *pairs)

    @classmethod
    def of_shape(cls, shape: Shape) -> Work:
        """What a batch needs whose clips, and whose windows, are all of one length, without pairs with the opening."""
        pairs = shape.audio_tokens**2 / shape.windows, shape.tokens**2 / shape.clips
        return cls(shape.chunks, shape.audio_tokens, shape.tokens, shape.labels, *pairs)


def pass_flops(sizes: ModelSizes, trained: Collection[str], work: Work, live_rows: int | None = None) -> float:
    """FLOPs of forward and backward, where the weights called ``trained`` do.

    ``live_rows``: how many of the head's rows get a gradient, where not all do.
    """
    total, gradient_passes = 0.0, False
    for forward, names in _parts(sizes, work):
        # Forward; the gradient of the input, if something below trains or a norm of this part, which lies before its
        # matrices; the gradient of the weights, if they train.
        trains = any(name.startswith(names) for name in trained)
        gradient_passes = gradient_passes or trains
        total += forward * (1 + gradient_passes + trains)
    still = 0 if live_rows is None else sizes.vocab_size - live_rows
    return total - 2.0 * still * sizes.hidden_size * work.labels


def _parts(sizes: ModelSizes, work: Work) -> Iterator[tuple[float, tuple[str, ...]]]:
    """FLOPs of each part's forward, from the bottom, with the beginnings of its weights' names."""
    shapes = weight_shapes(sizes)

    def weights(*names: str) -> float:
        matrices = (shape for name, shape in shapes.items() if name.startswith(names) and len(shape) > 1)
        return float(sum(map(math.prod, matrices)))

    tower, language_model = "model.audio_tower.", "model.language_model."
    rows, columns, stem = MEL_BINS, CHUNK_FRAMES, 0.0
    for name in ("conv2d1", "conv2d2", "conv2d3"):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
        stem += 2 * weights(f"{tower}{name}") * rows * columns * work.chunks
    yield stem + 2 * weights(f"{tower}conv_out") * TOKENS_PER_CHUNK * work.chunks, (f"{tower}conv",)
    encoder_scores = 4.0 * sizes.d_model * work.window_pairs
    decoder_scores = 2.0 * sizes.num_attention_heads * sizes.head_dim * work.clip_pairs
    for index in range(sizes.encoder_layers):
        layer = f"{tower}layers.{index}."
        yield 2 * weights(layer) * work.audio_tokens + encoder_scores, (layer,)
    projector = "model.multi_modal_projector."
    yield 2 * weights(projector) * work.audio_tokens, (projector, f"{tower}ln_post.")
    yield 0.0, (EMBEDDING,)  # a look-up; but where it trains, its gradient passes through all layers
    for index in range(sizes.num_hidden_layers):
        layer = f"{language_model}layers.{index}."
        yield 2 * weights(layer) * work.tokens + decoder_scores, (layer,)
    head = EMBEDDING if sizes.tie_word_embeddings else HEAD
    yield 2 * weights(head) * work.labels, (head,)
