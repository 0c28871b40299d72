"""The packed forward for DeepSpeed's own ZeRO-3, which gathers weights as modules are called: here by the layer.

A pass calls some 600 modules, and DeepSpeed's hooks take a millisecond for each. So a layer is called whole, as one of
its leaf modules (``deepspeed.utils.set_z3_leaf_modules``): 52 layers are as many gatherings. It is what is left for
fp32, and for what DeepSpeed alone has: offloading, weights sent in 8 bits. Others are gathered by ``sharded.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3ASRForConditionalGeneration

from hebrew_asr.passes.packed import PackedASR, decoder_layer, embed, encoder_layer, summed_loss


class LayeredASR(PackedASR):
    """``PackedASR`` that calls the embedding, every layer and the head as modules.

    The native model cannot ``generate`` any more; a copy can.
    """

    def __init__(self, asr: Qwen3ASRForConditionalGeneration) -> None:
        """Nothing is compiled."""
        super().__init__(asr)
        encoder: Any = asr.model.audio_tower.layers
        decoder: Any = asr.model.language_model.layers
        kinds: list[tuple[Any, Any]] = [(encoder, encoder_layer), (decoder, decoder_layer)]
        kinds += [((asr.model.language_model.embed_tokens,), embed), ((asr.lm_head,), summed_loss)]
        for modules, part in kinds:
            for module in modules:
                module.forward = partial(part, module)
        self.leaves: list[nn.Module] = [*encoder, *decoder]
        """The layers: what DeepSpeed should gather whole."""

    def run(self, part: Callable[..., Tensor], module: Any, *inputs: Any) -> Tensor:
        """What reads weights itself is called as a module, so that DeepSpeed's hooks run; its forward is ``part``."""
        if part in (embed, summed_loss):
            return module(*inputs)
        if part not in (encoder_layer, decoder_layer):
            return part(module, *inputs)
        hidden, *others = inputs
        return module(_with_gradient(module, hidden), *others)


def _with_gradient(layer: nn.Module, hidden: Tensor) -> Tensor:
    """``hidden``, as the start of a graph if the layer is the lowest that trains.

    DeepSpeed reduces a leaf's gradients in a full backward hook, and torch calls that before they are there where no
    input of the module needs a gradient.
    """
    trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    return hidden.detach().requires_grad_() if trains and not hidden.requires_grad else hidden
