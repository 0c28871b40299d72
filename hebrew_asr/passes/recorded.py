"""A training pass as CUDA graphs, recorded once for each shape of batch and then replayed.

``torch.cuda.make_graphed_callables`` does the same for one shape, and keeps the gradients of each one's graph: 1.8 GB
for every shape. Here all shapes share one memory pool: what a pass leaves there is used up before the next one runs.
Forward and backward are two graphs each, cut at the seam (``seam.py``). Without a decoder layer that trains there is no
seam, and each is one graph; so is backward where nothing trains below. Where ranks share the weights (``sharded.py``),
each is one graph too, in which the weights are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.passes.seam import Seam
from hebrew_asr.passes.sharded import ShardedWeights

_READ = (
    *("conv_positions_A", "window_cu_seqlens_W1", "input_ids_T", "position_ids_T", "audio_positions_A"),
    *("clip_cu_seqlens_N2", "supervised_positions_L", "labels_L"),
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
    forward: list[torch.cuda.CUDAGraph]
    """What is above the seam comes last."""
    backward: list[torch.cuda.CUDAGraph]
    """What is above the seam comes first."""
    loss: Tensor
    gradients: list[Tensor | None]
    """Of the weights that train, None of those that the loss does not depend on."""


class RecordedPasses:
    """``forward`` of a model, replayed where a batch of the same shape was seen since weights last moved.

    A replayed pass puts gradients where autograd would, in ``grad``, and runs no hooks on weights. They must be used
    and dropped before the next pass, which overwrites them.
    """

    def __init__(self, forward: Callable[[PackedBatch, Tensor], Tensor], asr: nn.Module, seam: Seam):
        """``forward`` gives a scalar loss, never waits for the device, draws no random numbers, and calls ``enter``."""
        self._forward, self._asr, self._seam = forward, asr, seam
        self._weights = tuple(asr.parameters())  # finding them takes two milliseconds
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._state: tuple[Any, ...] = ()
        self._trained: list[Tensor] = []
        self._pool: Any = None
        self._is_given_up = False
        self._cross: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self, batch: PackedBatch, mel_CBF: Tensor, *, plainly: bool, sharded: ShardedWeights | None = None
    ) -> Tensor:
        """As ``forward``; plainly for the first batch after a change, in which libraries set up what they need.

        Args:
            batch: as ``forward`` has it.
            mel_CBF: likewise.
            plainly: do not replay this time.
            sharded: what has the weights, if ranks share them: then gatherings are recorded with the pass.
        """
        state = tuple((weight.data_ptr(), weight.requires_grad) for weight in self._weights)
        if state != self._state or self._is_given_up:
            self.release()
            self._state, plainly = state, True
            self._trained = [weight for weight in self._weights if weight.requires_grad]
        if plainly or (sharded is not None and not sharded.repeats):
            self._seam.wait()
            return self._forward(batch, mel_CBF)
        inputs = [mel_CBF, *(getattr(batch, name) for name in _READ)]
        shape = (*(part.shape for part in inputs), batch.opening_tokens)
        if shape not in self._recordings:
            self._seam.wait()
            recording = self._record(batch, inputs, sharded)
            if recording is None:
                return self._forward(batch, mel_CBF)
            self._recordings[shape] = recording
        recording = self._recordings[shape]
        for held, given in zip(recording.inputs, inputs, strict=True):
            held.copy_(given)
        root = torch.ones_like(recording.loss, requires_grad=True)  # so that there is a backward pass
        loss: Any = _Replay.apply(root, recording, self._trained, self._seam)
        return loss

    def enter(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """``hidden``, as a decoder layer reads it; in a recording it crosses the seam here."""
        return hidden if self._cross is None or layer is not self._seam.layer else self._cross(hidden)

    def release(self) -> None:
        """Forget all recordings; their memory is free when the next one is made."""
        self._recordings.clear()
        self._state, self._pool = (), None

    def _record(self, batch: PackedBatch, inputs: list[Tensor], sharded: ShardedWeights | None) -> _Recording | None:
        """None if it failed for another reason than memory, which is noted: then nothing is recorded any more."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        held = [part.clone() for part in inputs]
        read: dict[str, Any] = dict(zip(_READ, held[1:], strict=True))
        still = replace(batch, waveform_S=batch.waveform_S.new_empty(0), **read)
        try:
            with _fresh_leaves(self._asr) as leaves, nullcontext() if sharded is None else sharded.held_by(leaves):
                trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
                forward, loss, crossed = self._record_forward(still, held[0])
                upstream = torch.ones_like(loss)
                backward, gradients = self._record_backward(loss, upstream, crossed, trained)
            unheld: list[Tensor | None] = [part if part is None else _same_memory(part) for part in gradients]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_given_up = True
            note_fallback("every kernel of a training step is launched anew, which small steps wait for", error)
            return None
        return _Recording(held, upstream, forward, backward, loss.detach(), unheld)

    def _record_forward(
        self, batch: PackedBatch, mel_CBF: Tensor
    ) -> tuple[list[torch.cuda.CUDAGraph], Tensor, list[Tensor]]:
        """Graphs, the loss, and the hidden state at the seam: as it comes from below, and as it is read above."""
        graphs, crossed = [torch.cuda.CUDAGraph()], []
        with ExitStack() as part:

            def cross(hidden: Tensor) -> Tensor:
                part.close()
                graphs.append(torch.cuda.CUDAGraph())
                part.enter_context(recording(graphs[-1], self._pool))
                crossed.extend([hidden, hidden.detach().requires_grad_(hidden.requires_grad)])
                return crossed[-1]

            part.enter_context(recording(graphs[0], self._pool))
            self._cross = cross
            try:
                loss = self._forward(batch, mel_CBF)
            finally:
                self._cross = None
        return graphs, loss, crossed

    def _record_backward(
        self, loss: Tensor, upstream: Tensor, crossed: list[Tensor], trained: list[Tensor]
    ) -> tuple[list[torch.cuda.CUDAGraph], list[Tensor | None]]:
        """Graphs, and the gradients of ``trained``: those of the seam's weights are complete after the first graph."""
        goes_on = bool(crossed) and crossed[0].requires_grad
        graphs = [torch.cuda.CUDAGraph() for _ in range(1 + goes_on)]
        with recording(graphs[0], self._pool):
            wanted = [*trained, *crossed[1 : 1 + goes_on]]
            found: list[Tensor | None] = [*torch.autograd.grad(loss, wanted, upstream, allow_unused=True)]
            incoming = found.pop() if goes_on else None
            gradients = [_finished(part, None) for part in found]
        if goes_on:
            with recording(graphs[1], self._pool):
                below = torch.autograd.grad(crossed[0], trained, incoming, allow_unused=True)
                gradients = [_finished(part, more) for part, more in zip(gradients, below, strict=True)]
        return graphs, gradients


def _finished(part: Tensor | None, more: Tensor | None) -> Tensor | None:
    """A gradient's two parts as one, contiguous."""
    parts = [one for one in (part, more) if one is not None]
    if not parts:
        return None
    return (parts[0].add_(parts[1]) if len(parts) == 2 else parts[0]).contiguous()


@contextmanager
def _fresh_leaves(asr: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """Within this, the weights are tensors that autograd has not met, in the same memory; gives them, by weight.

    Autograd remembers on which stream a leaf was used first, and lets that one wait for gradients: a stream outside of
    the recording, which ends it. Hooks on the weights stay with the weights, and run when gradients are replayed.
    """
    leaves: dict[Tensor, Tensor] = {one: nn.Parameter(one.detach(), one.requires_grad) for one in asr.parameters()}
    held = [
        (module, name, weight) for module in asr.modules() for name, weight in module.named_parameters(recurse=False)
    ]
    for module, name, weight in held:
        _put(module, name, leaves[weight])
    try:
        yield leaves
    finally:
        for module, name, weight in held:
            _put(module, name, weight)


def _put(module: nn.Module, name: str, weight: Tensor) -> None:
    """As ``setattr``, which reads what is there first: DeepSpeed's ZeRO-3 takes that for a use, and gathers it.

    To delete it before would not do: Dynamo compiles anew for a dictionary of DeepSpeed's whose order was another.
    """
    module._parameters[name] = weight  # type: ignore[assignment]


class _Replay(torch.autograd.Function):
    """Forward and backward pass of a recording, as autograd sees them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, root: Tensor, recording: _Recording, trained: list[Tensor], seam: Seam
    ) -> Tensor:
        ctx.recording, ctx.trained, ctx.seam = recording, trained, seam
        *below, above = recording.forward
        seam.begin_pass(is_cut=bool(below))
        for graph in below:
            graph.replay()
        seam.wait()
        above.replay()
        return recording.loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        recording: _Recording = ctx.recording
        recording.upstream.copy_(upstream)
        above, *below = recording.backward
        above.replay()
        ctx.seam.gradients_are_queued()
        for graph in below:
            graph.replay()
        # Not through autograd: on the host, a node and its hooks for each weight take longer than small steps do.
        for weight, part in zip(ctx.trained, recording.gradients, strict=True):
            assert weight.grad is None, "the last pass's gradients were not dropped"
            weight.grad = part
        return None, None, None, None


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
