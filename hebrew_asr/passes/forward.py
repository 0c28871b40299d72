"""Which forward pass a run trains with: compiled and recorded, by the layer, or as it is written."""

from __future__ import annotations

from transformers import Qwen3ASRForConditionalGeneration

from hebrew_asr.config.profiles import Profile
from hebrew_asr.passes.compiled import CompiledASR
from hebrew_asr.passes.layered import LayeredASR
from hebrew_asr.passes.packed import PackedASR


def training_module(asr: Qwen3ASRForConditionalGeneration, profile: Profile) -> PackedASR:
    """The forward pass that a profile trains with."""
    if profile.zero_stage == 3 and not profile.is_flat:
        return LayeredASR(asr)
    recorded = profile.uses_cuda_graphs and profile.hardware.accelerator == "cuda"
    return CompiledASR(asr, recorded=recorded, cut=profile.cuts_passes) if profile.compiles else PackedASR(asr)
