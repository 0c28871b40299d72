"""The packed forward for ZeRO-3, which gathers weights as modules are called: here by the layer, each one compiled.

A pass calls some 600 modules, and DeepSpeed's hooks take a millisecond for each. So a layer is called whole, as one of
its leaf modules (``deepspeed.utils.set_z3_leaf_modules``): 52 layers are as many gatherings, and what runs between two
of them can be compiled, which no graph over the hooks can be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import Qwen3ASRForConditionalGeneration

from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.model.packed import PackedASR, decoder_layer, encoder_layer

ONE_GRAPH: dict[str, Any] = {"triton.mix_order_reduction_non_strict_mode": True}
"""Otherwise inductor fuses the backward of a norm for 4,096 rows or more only, and compiles all anew for fewer."""
CANNOT_COMPILE = (TorchDynamoException, FailOnRecompileLimitHit)
"""What torch raises before it has run anything of a function that it cannot compile whole."""


class LayeredASR(PackedASR):
    """``PackedASR`` that calls every layer as a module. The native model cannot ``generate`` any more; a copy can."""

    def __init__(self, asr: Qwen3ASRForConditionalGeneration, *, compiled: bool) -> None:
        """``compiled``: one graph for the layers of a kind; eager from the first failure on, which is noted."""
        super().__init__(asr)
        self._is_compiled = compiled
        encoder: Any = asr.model.audio_tower.layers
        decoder: Any = asr.model.language_model.layers
        kinds: list[tuple[Any, Any]] = [(encoder, encoder_layer), (decoder, decoder_layer)]
        for layers, run in kinds:
            compiled_run: Any = torch.compile(run, fullgraph=True, dynamic=True, options=ONE_GRAPH) if compiled else run
            for layer in layers:
                layer.forward = partial(self._run, compiled_run, run, layer)
        self.leaves: list[nn.Module] = [*encoder, *decoder]
        """The layers: what DeepSpeed should gather whole."""

    def call(self, run: Callable[..., Tensor], layer: nn.Module, hidden: Tensor, *others: Any) -> Tensor:
        """By the module itself, so that DeepSpeed's hooks run; its forward is ``run`` already."""
        return layer(_with_gradient(layer, hidden), *others)

    def _run(
        self, compiled: Callable[..., Tensor], eager: Callable[..., Tensor], layer: nn.Module, *inputs: Any
    ) -> Tensor:
        if self._is_compiled:
            try:
                return compiled(layer, *inputs)
            except CANNOT_COMPILE as error:
                self._is_compiled = False
                note_fallback("layers could not be compiled and run eagerly, several times slower", error)
        return eager(layer, *inputs)


def _with_gradient(layer: nn.Module, hidden: Tensor) -> Tensor:
    """``hidden``, as the start of a graph if the layer is the lowest that trains.

    DeepSpeed reduces a leaf's gradients in a full backward hook, and torch calls that before they are there where no
    input of the module needs a gradient.
    """
    trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    return hidden.detach().requires_grad_() if trains and not hidden.requires_grad else hidden
