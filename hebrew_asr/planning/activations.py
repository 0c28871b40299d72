"""What a forward and backward pass keeps in memory, by arithmetic alone: the sums of PyTorch's saved tensors.

Every part of :class:`hebrew_asr.passes.packed.PackedASR` saves so many bytes a row for its backward pass: more where
its weights train, nothing where no gradient passes. The largest moment of the pass is looked for where it can be: at
the logits, at the fullest point of each layer's backward, and where the gradient of the tied embedding is added up.
Tests hold the sums to a real pass on the meta device. Not counted: workspace inside kernels (cuDNN, attention).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

from hebrew_asr.audio.frames import CHUNK_FRAMES, MEL_BINS
from hebrew_asr.data.shapes import Shape
from hebrew_asr.model.sizes import EMBEDDING, HEAD, ModelSizes

_FP32 = 4
"""Bytes of what norms and the loss compute in, whatever the weights are."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that an eager pass allocates beside weights, buffers and optimizer."""

    saved: int
    """Alive after forward: what autograd keeps for backward, and the features."""
    peak: int
    """Most that is alive at any moment of forward and backward, with the gradients of one parameter at a time; that of
    a tied embedding lives from the logits' backward to the embedding's."""
    decoder: int
    """The part of ``saved`` that the decoder's layers keep."""
    logits: int
    """The most of ``peak`` that logits take: in float32 with their log-softmax and its gradient, and in 16 bits."""


@dataclass(frozen=True)
class _Part:
    """A part of the model, from its input to its output."""

    saved: int = 0
    backward: int = 0
    """Most that its backward needs beside all that is saved by it and by the parts below, and its output's gradient."""


def footprint(sizes: ModelSizes, trained: Collection[str], shape: Shape, width: int) -> Footprint:
    """Bytes of one forward and backward pass.

    Args:
        sizes: of the model.
        trained: names of the weights that train.
        shape: of the batch.
        width: bytes of a weight: 2 or 4.
    """
    return _Pass(sizes, trained, shape, width).footprint()


class _Pass:
    """One batch through one model."""

    def __init__(self, sizes: ModelSizes, trained: Collection[str], shape: Shape, width: int):
        self._sizes, self._shape, self._width = sizes, shape, width
        self._trained = tuple(trained)
        self._passes = False
        """Whether a gradient passes to the part at hand from the parts below it, which need it."""

    def footprint(self) -> Footprint:
        sizes, shape, width = self._sizes, self._shape, self._width
        features = _FP32 * shape.chunks * MEL_BINS * CHUNK_FRAMES
        stem = self._stem()
        below = [stem, *(self._encoder_layer(index) for index in range(sizes.encoder_layers)), self._projector()]
        self._passes = self._passes or self._trains(EMBEDDING)
        above = [self._decoder_layer(index) for index in range(sizes.num_hidden_layers)]
        # Of each row, where its window begins and ends: all encoder layers share that.
        bounds = 8 * shape.audio_tokens * any(part.saved for part in below[1:-1])
        sums = list(accumulate((part.saved for part in (*below, *above)), initial=features + bounds))[1:]
        embedded, layers = sums[len(below) - 1], sums[len(below) :]
        if layers[-1] > embedded:  # sine and cosine of every position, and bounds of its clip, which all layers share
            rotary = (8 + 8) * shape.tokens + 2 * width * shape.tokens * sizes.head_dim
            layers = [total + rotary for total in layers]
        logits = shape.labels * sizes.vocab_size
        saved = layers[-1] + self._norm_and_head() + _FP32 * logits
        embedding = width * sizes.vocab_size * sizes.hidden_size
        tied, head = embedding * self._trains(EMBEDDING), embedding * self._trains(EMBEDDING, HEAD)
        gradient = width * shape.tokens * sizes.hidden_size
        moments = [
            self._stem_forward(features),
            saved + 2 * _FP32 * logits,
            saved - _FP32 * logits + width * (logits + shape.labels * sizes.hidden_size) + head,
            *(total + part.backward + tied + gradient for part, total in zip(above, layers, strict=True)),
            embedded + 3 * tied,  # of the head, of the embedding, and their sum
            *(total + part.backward for part, total in zip(below, sums, strict=False)),
        ]
        return Footprint(saved, max(moments), sum(part.saved for part in above), logits * (3 * _FP32 + 2 * width))

    def _trains(self, *names: str) -> bool:
        """Whether any weight trains whose name is, or begins with, one of ``names``."""
        return any(weight.startswith(names) for weight in self._trained)

    def _enter(self, *names: str) -> tuple[bool, bool, bool]:
        """Go up to a part: whether its input needs a gradient, whether its weights train, whether either does."""
        before, trains = self._passes, self._trains(*names)
        self._passes = before or trains
        return before, trains, self._passes

    def _convolved(self) -> list[int]:
        """Elements after each convolution."""
        rows, columns, found = MEL_BINS, CHUNK_FRAMES, []
        for _ in range(3):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
            found.append(self._shape.chunks * self._sizes.downsample_hidden_size * rows * columns)
        return found

    def _stem_forward(self, features: int) -> int:
        """Both sides of the first activation, the largest tensors of all."""
        cast = features // _FP32 * self._width if self._width != _FP32 else 0
        return features + cast + 2 * self._width * self._convolved()[0]

    def _stem(self) -> _Part:
        tower = "model.audio_tower."
        _, trains, _ = self._enter(f"{tower}conv")
        if not trains:
            return _Part()
        first, second, third = self._convolved()
        cast = self._shape.chunks * MEL_BINS * CHUNK_FRAMES if self._width != _FP32 else 0
        saved = cast + 2 * first + 2 * second + 2 * third  # before and after each activation
        in_second = first + second - 2 * second - 2 * third  # gradients of both its sides; all above it is gone
        return _Part(self._width * saved, self._width * in_second)

    def _encoder_layer(self, index: int) -> _Part:
        sizes, rows = self._sizes, self._shape.audio_tokens
        _, trains, either = self._enter(f"model.audio_tower.layers.{index}.")
        if not either:
            return _Part()
        # Inputs of both norms, query, key, value and what was attended to, and the input of the activation.
        elements = 6 * sizes.d_model + sizes.encoder_ffn_dim
        if trains:  # inputs of the products
            elements += 2 * sizes.d_model + sizes.encoder_ffn_dim
        statistics = _FP32 * (4 + sizes.encoder_attention_heads)
        return _Part(
            rows * (self._width * elements + statistics),
            self._width * rows * (2 * sizes.encoder_ffn_dim + 2 * sizes.d_model),
        )

    def _projector(self) -> _Part:
        sizes, rows = self._sizes, self._shape.audio_tokens
        _, trains, either = self._enter("model.audio_tower.ln_post.", "model.multi_modal_projector.")
        if not either:
            return _Part()
        elements = (4 if trains else 2) * sizes.d_model + sizes.hidden_size
        return _Part(rows * (self._width * elements + 2 * _FP32), self._width * rows * sizes.d_model)

    def _decoder_layer(self, index: int) -> _Part:
        sizes, tokens, width = self._sizes, self._shape.tokens, self._width
        is_last = index == sizes.num_hidden_layers - 1
        rows = self._shape.labels if is_last else tokens
        before, trains, either = self._enter(f"model.language_model.layers.{index}.")
        if not either:
            return _Part()
        hidden, inner = sizes.hidden_size, sizes.intermediate_size
        queries, keys = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
        heads = sizes.num_attention_heads + sizes.num_key_value_heads
        # Norms keep their input and its scale in fp32; where their weights train, what they scaled too.
        normed = before * _FP32 * (hidden + 1) + _FP32 * (queries + keys + heads)
        attended = width * (2 * queries + 2 * keys) + _FP32 * sizes.num_attention_heads
        attention = tokens * (normed + attended)
        feed_forward = rows * (_FP32 * (hidden + 1) + 3 * width * inner)
        if trains:
            attention += width * (tokens * (2 * hidden + queries + keys) + is_last * rows * queries)
            feed_forward += width * rows * (2 * hidden + inner)
        at_activation = width * rows * inner * (2 if trains else 3)
        # In the norm of the queries, when all above it is gone: its input in five forms beside what lies below.
        gone = feed_forward + tokens * attended + tokens * _FP32 * keys
        gone += width * trains * (tokens * (queries + keys) + is_last * rows * queries)
        at_norm = tokens * (5 * _FP32 * queries + width * hidden) - gone
        return _Part(attention + feed_forward, max(at_activation, at_norm, 0))

    def _norm_and_head(self) -> int:
        """Saved by the final norm, and the head's input."""
        rows, hidden, width = self._shape.labels, self._sizes.hidden_size, self._width
        before, trains, _ = self._enter("model.language_model.norm.")
        saved = before * _FP32 * (hidden + 1) + trains * width * hidden
        return rows * (saved + width * hidden * self._trains(HEAD, EMBEDDING))
