"""The packed forward as one compiled graph: a step of 8 clips is otherwise bound by launching some 8,000 kernels.

``fullgraph``, and the sizes of a batch are symbols in it: one graph a phase serves every batch, since only flipping
``requires_grad`` changes the backward pass. It takes two minutes to compile and is kept on disk, so a later run on the
machine reuses it. ``torch.compiler.nested_compile_region`` on the layers, which compiles one of each kind only,
showed no gain on an H100 (torch 2.11: 142 s, where other hosts took 113 to 136): it traces a layer anew at each call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ASRForConditionalGeneration

from hebrew_asr.config.profiles import Profile
from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.model.layered import CANNOT_COMPILE, ONE_GRAPH, LayeredASR
from hebrew_asr.model.packed import PackedASR

_MAX_GRAPHS = 64
"""torch's own limit of 8 for one function is meant to notice shapes that never repeat."""


class CompiledASR(PackedASR):
    """``PackedASR`` through ``torch.compile``; eager from the first failure on, which is noted."""

    def __init__(
        self, asr: Qwen3ASRForConditionalGeneration, *, cuda_graphs: bool = False, backend: str = "inductor"
    ) -> None:
        """``cuda_graphs``: replay kernels instead of launching them, which pays where the host cannot keep up."""
        super().__init__(asr)
        _keep_graphs()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
        options: Any = {**ONE_GRAPH, "triton.cudagraphs": cuda_graphs} if backend == "inductor" else None
        self._compiled = torch.compile(self._traced, fullgraph=True, backend=backend, options=options)
        self._phases: dict[tuple[bool, ...], str] = {}
        self._weights = tuple(asr.parameters())  # finding them takes two milliseconds
        self.is_compiled = True

    def forward(self, batch: PackedBatch, mel_CBF: Tensor) -> Tensor:
        """As :meth:`PackedASR.forward`; the first call in a phase takes two minutes or so."""
        if self.is_compiled:
            try:
                _let_sizes_vary(batch, mel_CBF)
                return self._compiled(batch, mel_CBF, self._phase())
            except CANNOT_COMPILE as error:
                self.is_compiled = False
                note_fallback("the training step could not be compiled and runs eagerly, several times slower", error)
        return super().forward(batch, mel_CBF)

    def _traced(self, batch: PackedBatch, mel_CBF: Tensor, phase: str) -> Tensor:
        assert phase  # reading it makes Dynamo guard on it: one graph per phase
        return super().forward(batch, mel_CBF)

    def _phase(self) -> str:
        """A name for what trains. torch 2.11 does not notice ``requires_grad`` flipped on a module's parameters: it
        would reuse the graph of the phase before, which gives the newly trained weights no gradient. A name and not a
        number, which would become a symbol too.
        """
        trains = tuple(weight.requires_grad for weight in self._weights)
        return self._phases.setdefault(trains, f"phase {len(self._phases)}")


def training_module(asr: Qwen3ASRForConditionalGeneration, profile: Profile) -> PackedASR:
    """The forward pass that a profile trains with."""
    if profile.zero_stage == 3:
        return LayeredASR(asr, compiled=profile.compiles_layers)
    return CompiledASR(asr, cuda_graphs=profile.uses_cuda_graphs) if profile.compiles else PackedASR(asr)


def _let_sizes_vary(batch: PackedBatch, mel_CBF: Tensor) -> None:
    """One graph for all sizes of batches: their first dimensions are symbols in it."""
    for tensor in (
        *(mel_CBF, batch.conv_positions_A, batch.window_cu_seqlens_W1, batch.input_ids_T, batch.position_ids_T),
        *(batch.audio_positions_A, batch.clip_cu_seqlens_N1, batch.supervised_positions_L, batch.labels_L),
    ):
        torch._dynamo.mark_dynamic(tensor, 0)


def _keep_graphs() -> None:
    """Compile into the user's cache rather than ``/tmp``, which rented machines lose or share."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hebrew_asr" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
