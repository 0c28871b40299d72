"""The packed forward in compiled parts, recorded as CUDA graphs: launching its kernels takes longer than a small step.

Each kind of part (a decoder layer that trains, one that is frozen, …) is compiled once, with the sizes of a batch as
symbols, so that it serves all layers of its kind and all batches. Compiling the whole pass as one graph takes three
times as long. But every call of a compiled part costs the host some 0.3 ms, so on CUDA the row of parts is recorded
once for each shape of batch (``recorded.py``) and replayed from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import Qwen3ASRForConditionalGeneration

from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.passes.recorded import RecordedPasses

CANNOT_COMPILE = (TorchDynamoException, FailOnRecompileLimitHit)
"""What torch raises before it has run anything of a function that it cannot compile whole."""
_OPTIONS: dict[str, Any] = {"triton.mix_order_reduction_non_strict_mode": True}
"""Otherwise inductor fuses the backward of a norm for 4,096 rows or more only, and compiles all anew for fewer."""
_MAX_GRAPHS = 64
"""torch's own limit of 8 for one function is meant to notice shapes that never repeat."""


class CompiledParts:
    """Functions of ``packed.py`` through ``torch.compile``; eager from the first failure on, which is noted."""

    def __init__(self, backend: str = "inductor") -> None:
        """Nothing is compiled before it is called."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
        self._options = _OPTIONS if backend == "inductor" else None
        self._backend = backend
        self._compiled: dict[Callable[..., Tensor], Any] = {}
        self.is_compiled = True

    def __call__(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """``part(*inputs)``."""
        if self.is_compiled:
            try:
                _let_sizes_vary(inputs)
                return self._get(part)(_what_trains(inputs), *inputs)
            except CANNOT_COMPILE as error:
                self.is_compiled = False
                note_fallback("the training step could not be compiled and runs eagerly, several times slower", error)
        return part(*inputs)

    def _get(self, part: Callable[..., Tensor]) -> Any:
        if part not in self._compiled:

            def traced(what_trains: str, *inputs: Any) -> Tensor:
                assert what_trains  # reading it makes Dynamo guard on it
                return part(*inputs)

            self._compiled[part] = torch.compile(traced, fullgraph=True, backend=self._backend, options=self._options)
        return self._compiled[part]


class CompiledASR(PackedASR):
    """``PackedASR`` in compiled parts."""

    def __init__(
        self,
        asr: Qwen3ASRForConditionalGeneration,
        *,
        recorded: bool = False,
        cut: bool = True,
        backend: str = "inductor",
    ) -> None:
        """Nothing is compiled before it is called.

        Args:
            asr: the model.
            recorded: replay kernels instead of launching them; only for who drops gradients after each backward.
            cut: whether recordings are cut at the seam.
            backend: of ``torch.compile``.
        """
        super().__init__(asr)
        self._parts = CompiledParts(backend)
        self._is_cut = cut and recorded
        self._recorded = RecordedPasses(super().loss, asr, self.seam) if recorded else None

    @property
    def is_compiled(self) -> bool:
        """Whether nothing has failed so far."""
        return self._parts.is_compiled

    def loss(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """As :meth:`PackedASR.loss`; the first call in a phase compiles."""
        self.seam.begin_pass(is_cut=False)
        if self._recorded is not None and torch.is_grad_enabled():
            if self.is_compiled:
                return self._recorded(batch, mel_CBF, plainly=self.needs_hooks, sharded=self.sharded)
            self._recorded.release()
        self.seam.wait()
        return super().loss(batch, mel_CBF)

    def run(self, part: Callable[..., Tensor], module: Any, *inputs: Any) -> Tensor:
        """Compiled."""
        return self._parts(part, module, *inputs)

    def enter(self, layer: nn.Module, hidden_TH: Tensor) -> Tensor:
        """A recording may be cut at the seam."""
        return hidden_TH if self._recorded is None else self._recorded.enter(layer, hidden_TH)

    def find_seam(self) -> None:
        """Where recordings are cut."""
        if self._is_cut:
            self.seam.find(self.asr)

    def release(self) -> None:
        """Forget the recordings, and give their memory back."""
        super().release()
        if self._recorded is not None:
            self._recorded.release()


def _what_trains(inputs: tuple[Any, ...]) -> str:
    """Which weights of the modules train. torch 2.11 does not notice ``requires_grad`` on a module's parameters: it
    would run a layer that trains through the graph of a frozen one, which gives its weights no gradient. A string and
    not numbers, which would become symbols.
    """
    modules = (module for module in inputs if isinstance(module, nn.Module))
    return "trains: " + "".join("01"[weight.requires_grad] for module in modules for weight in module.parameters())


def _let_sizes_vary(inputs: tuple[Any, ...]) -> None:
    """One graph for all sizes of batches: the first dimensions of its tensors are symbols in it."""
    for value in inputs:
        if isinstance(value, tuple):
            _let_sizes_vary(value)
        elif isinstance(value, Tensor):
            torch._dynamo.mark_dynamic(value, 0)
