"""What a forward and backward pass keeps in memory, counted without doing it: the real pass on the meta device.

Tensors there have shapes and live as long as real ones, but no bytes, so a two-billion-weight pass takes a second.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from hebrew_asr.audio.frames import CHUNK_FRAMES, MEL_BINS
from hebrew_asr.audio.mel import plan_mel
from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.data.shapes import Shape
from hebrew_asr.model.load import build_model
from hebrew_asr.model.sizes import AUDIO_SIZES, TEXT_SIZES, ModelSizes
from hebrew_asr.passes.packed import PackedASR


@dataclass(frozen=True)
class Footprint:
    """Bytes that an eager pass allocates beside weights, buffers and optimizer."""

    saved: int
    """Alive after forward: what autograd keeps for backward, and the batch itself."""
    peak: int
    """Most that is alive at any moment of forward and backward, with the gradients of one parameter at a time."""
    peak_at: str
    """The operation that reaches it."""


def config_of(sizes: ModelSizes) -> Qwen3ASRConfig:
    """The config of a model of these sizes."""
    tied = sizes.tie_word_embeddings
    audio, text = (
        {key: getattr(sizes, key) for key in keys} for keys in (AUDIO_SIZES, (*TEXT_SIZES, "attention_bias"))
    )
    config = Qwen3ASRConfig(audio_config=audio, text_config=text, tie_word_embeddings=tied)
    assert ModelSizes.of(config) == sizes
    return config


def without_memory(config: Qwen3ASRConfig, dtype: torch.dtype) -> Qwen3ASRForConditionalGeneration:
    """The model on the meta device, in training mode: shapes and data types, no storage."""
    with torch.device("meta"):
        return build_model(config, dtype).train()


def trace(asr: Any, shape: Shape) -> Footprint:
    """Run one batch of ``shape`` through ``PackedASR`` with the parameters' present ``requires_grad``.

    Exact for PyTorch's reference counts. Not counted: workspace inside kernels (cuDNN, attention's backward).

    Args:
        asr: native model on the meta device, from :func:`without_memory`.
        shape: sizes of the batch.
    """
    return measure(PackedASR(asr), *meta_batch(shape))


def measure(module: nn.Module, batch: PackedBatch, mel_CBF: Tensor) -> Footprint:
    """Count one forward and backward of ``module``; each parameter's gradient is dropped when it is complete.

    The module may be real: then the pass is done, and what it truly allocates is counted.
    """
    dropped = [
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    allocated = _Allocated(module)
    try:
        with allocated:
            loss = module(batch, mel_CBF)
            saved = allocated.live
            loss.backward()
    finally:
        for hook in dropped:
            hook.remove()
    return Footprint(saved, allocated.peak, allocated.peak_at)


def meta_batch(shape: Shape) -> tuple[PackedBatch, Tensor]:
    """A batch of these sizes and its features, on the meta device."""

    def made(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    batch = PackedBatch(
        clip_ids=[],
        samples=[],
        frames=[],
        audio_tokens=[],
        opening_tokens=9,
        tokens=[],
        labels_per_clip=[],
        waveform_S=made(0, torch.int16),
        mel=plan_mel([1], [1.0], None),
        conv_positions_A=made(shape.audio_tokens),
        window_cu_seqlens_W1=made(shape.windows + 1, torch.int32),
        input_ids_T=made(shape.tokens),
        position_ids_T=made(shape.tokens),
        audio_positions_A=made(shape.audio_tokens),
        clip_cu_seqlens_N2=made(shape.clips + 2, torch.int32),
        supervised_positions_L=made(shape.labels),
        labels_L=made(shape.labels),
    )
    return batch, torch.empty(shape.chunks, MEL_BINS, CHUNK_FRAMES, device="meta")


class _Allocated(TorchDispatchMode):
    """Bytes of every storage that an operation makes, from its birth to its death."""

    def __init__(self, module: nn.Module):
        """``module``: its parameters and buffers are not counted."""
        super().__init__()
        self.live = self.peak = 0
        self.peak_at = "nothing"
        self._known: dict[int, Any] = {
            tensor.untyped_storage()._cdata: None for tensor in (*module.parameters(), *module.buffers())
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage(), str(func))
        return out

    def _meet(self, storage: Any, operation: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def died(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, died)
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, operation
