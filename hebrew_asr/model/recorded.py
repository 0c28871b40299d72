"""A training pass as two CUDA graphs, forward and backward, recorded once for each shape of batch and then replayed.

``torch.cuda.make_graphed_callables`` does the same for one shape, and keeps the gradients of each one's graph: 1.8 GB
for every shape. Here all shapes share one memory pool: what a pass leaves there is used up before the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.fallbacks import note_fallback

_READ = (
    *("conv_positions_A", "window_cu_seqlens_W1", "input_ids_T", "position_ids_T", "audio_positions_A"),
    *("clip_cu_seqlens_N1", "supervised_positions_L", "labels_L"),
)
"""Tensors of a batch that the forward pass reads."""
_TYPES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2"}
"""As numpy spells them, which has no bfloat16: integers of the same size stand for it."""


@dataclass(frozen=True)
class _Recording:
    """Of one shape. Its tensors lie where the graphs read and write them."""

    inputs: list[Tensor]
    upstream: Tensor
    """Scalar: the gradient of the loss."""
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    loss: Tensor
    gradients: list[Tensor | None]
    """Of the weights that train, None of those that the loss does not depend on."""


class RecordedPasses:
    """``forward`` of a model, replayed where a batch of the same shape was seen since weights last moved.

    A gradient must be used and dropped before the next pass, which overwrites it.
    """

    def __init__(self, forward: Callable[[PackedBatch, Tensor], Tensor], asr: nn.Module):
        """``forward`` gives a scalar loss, never waits for the device, and draws no random numbers."""
        self._forward, self._asr = forward, asr
        self._weights = tuple(asr.parameters())  # finding them takes two milliseconds
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._state: tuple[Any, ...] = ()
        self._trained: list[Tensor] = []
        self._pool: Any = None
        self._is_given_up = False

    def __call__(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """As ``forward``; plainly for the first batch after a change, in which libraries set up what they need."""
        state = tuple((weight.data_ptr(), weight.requires_grad) for weight in self._weights)
        if state != self._state or self._is_given_up:
            self.release()
            self._state = state
            self._trained = [weight for weight in self._weights if weight.requires_grad]
            return self._forward(batch, mel_CBF)
        inputs = [mel_CBF, *(getattr(batch, name) for name in _READ)]
        shape = (*(part.shape for part in inputs), batch.max_window_tokens, batch.max_clip_tokens)
        if shape not in self._recordings:
            recording = self._record(batch, inputs)
            if recording is None:
                return self._forward(batch, mel_CBF)
            self._recordings[shape] = recording
        recording = self._recordings[shape]
        for held, given in zip(recording.inputs, inputs, strict=True):
            held.copy_(given)
        loss: Any = _Replay.apply(recording, *self._trained)
        return loss

    def release(self) -> None:
        """Forget all recordings; their memory is free when the next one is made."""
        self._recordings.clear()
        self._state, self._pool = (), None

    def _record(self, batch: PackedBatch, inputs: list[Tensor]) -> _Recording | None:
        """None if it failed for another reason than memory, which is noted: then nothing is recorded any more."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        held = [part.clone() for part in inputs]
        read: dict[str, Any] = dict(zip(_READ, held[1:], strict=True))
        still = replace(batch, waveform_S=batch.waveform_S.new_empty(0), **read)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        try:
            with _fresh_leaves(self._asr) as trained:
                with recording(forward, self._pool):
                    loss = self._forward(still, held[0])
                upstream = torch.ones_like(loss)
                with recording(backward, self._pool):
                    found = torch.autograd.grad(loss, trained, upstream, allow_unused=True)
                    gradients: list[Tensor | None] = [part if part is None else part.contiguous() for part in found]
            unheld: list[Tensor | None] = [part if part is None else _same_memory(part) for part in gradients]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_given_up = True
            note_fallback("every kernel of a training step is launched anew, which small steps wait for", error)
            return None
        return _Recording(held, upstream, forward, backward, loss.detach(), unheld)


@contextmanager
def _fresh_leaves(asr: nn.Module) -> Iterator[list[Tensor]]:
    """Within this, the weights are tensors that autograd has not met, in the same memory; gives those that train.

    Autograd remembers on which stream a leaf was used first, and lets that one wait for gradients: a stream outside of
    the recording, which ends it. Hooks on the weights stay with the weights, and run when gradients are replayed.
    """
    leaves = {weight: nn.Parameter(weight.detach(), weight.requires_grad) for weight in asr.parameters()}
    held = [
        (module, name, weight) for module in asr.modules() for name, weight in module.named_parameters(recurse=False)
    ]
    for module, name, weight in held:
        setattr(module, name, leaves[weight])
    try:
        yield [leaf for leaf in leaves.values() if leaf.requires_grad]
    finally:
        for module, name, weight in held:
            setattr(module, name, weight)


class _Replay(torch.autograd.Function):
    """Forward and backward pass of a recording, as autograd sees them."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, *weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.recording = recording
        recording.forward.replay()
        return recording.loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        recording = ctx.recording
        recording.upstream.copy_(upstream)
        recording.backward.replay()
        # A tensor that nobody else holds becomes ``weight.grad`` without a copy.
        return None, *(part if part is None else part.detach() for part in recording.gradients)


class _Address:
    """Memory on the device, described as numba's CUDA array interface has it (version 3)."""

    def __init__(self, tensor: Tensor):
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def _same_memory(tensor: Tensor) -> Tensor:
    """A contiguous tensor's elements, without holding its memory, which the pool of its graph keeps."""
    return torch.as_tensor(_Address(tensor), device=tensor.device).view(tensor.dtype)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What is queued within goes into ``graph``, and is not run. If that fails, all is as it was before.

    Other threads, which prepare batches meanwhile, may go on allocating.
    """
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except Exception:
        _undo_recording(pool, stream)
        raise


def _undo_recording(pool: Any, stream: torch.cuda.Stream) -> None:
    """Give back what a recording that failed has taken; torch 2.11 does not.

    ``CUDAGraph.capture_end`` raises before it does so. Then the stream of the recording stays the current one, memory
    that is freed anywhere is kept for the pool, and every later draw from the device's generator raises "Offset
    increment outside graph capture". There is no public way to end the pool.

    Args:
        pool: handle that the recording was given, of its own.
        stream: the current one before.
    """
    torch.cuda.set_stream(stream)
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        return  # capture_end has come to its end, or capture_begin has not
    torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())  # the same numbers next, and no longer recording
