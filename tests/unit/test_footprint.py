"""Activations counted on the meta device are those of a real pass."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import hebrew_asr.model.packed as packed_module
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import needed_shape, pack
from hebrew_asr.data.shapes import Shape
from hebrew_asr.model.architecture import without_memory
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.planning.footprint import measure, meta_batch, trace
from hebrew_asr.text.prompt import PromptTokens
from tests.support.attention import dense_attention
from tests.support.native import build, examples

SHAPE = Shape(
    tokens=640, audio_tokens=384, chunks=40, windows=9, clips=9, labels=128, longest_window=104, longest_clip=192
)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = build()
    clips = examples(tokenizer)
    prompt, geometry = PromptTokens.of(tokenizer), EncoderGeometry()
    batch = pack(clips, prompt, geometry)
    shape = needed_shape([len(c.samples) for c in clips], [len(c.target_ids) for c in clips], prompt, geometry)
    return model, batch, LogMel()(batch), shape


def freeze_all_but(model, *modules):
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)


@pytest.mark.parametrize("phase", ["everything", "top", "head"])
def test_meta_counts_what_a_real_pass_allocates(tiny, monkeypatch, phase):
    """Attention is one and the same on both devices here; elsewhere a kernel stands for it."""
    monkeypatch.setattr(packed_module, "varlen_attention", dense_attention)
    model, batch, mel_CBF, shape = tiny
    meta = without_memory(model.config, torch.float32)
    for asr in (model, meta):
        top = [asr.model.multi_modal_projector, asr.model.language_model.layers[-1], asr.lm_head]
        freeze_all_but(asr, *{"everything": [asr], "top": top, "head": [asr.lm_head]}[phase])
    with sdpa_kernel(SDPBackend.MATH):
        real = measure(PackedASR(model), batch, mel_CBF)
        counted = measure(PackedASR(meta), *meta_batch(shape))
    assert (counted.saved, counted.peak, counted.peak_at) == (real.saved, real.peak, real.peak_at)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_kernel_stands_for_attention_without_hiding_memory(tiny):
    model, batch, mel_CBF, shape = tiny
    freeze_all_but(model, model)
    meta = without_memory(model.config, torch.float32)
    assert trace(meta, shape).saved == pytest.approx(measure(PackedASR(model), batch, mel_CBF).saved, rel=0.1)


def test_saved_is_what_autograd_saves(tiny):
    model, batch, mel_CBF, _ = tiny
    freeze_all_but(model, model)
    module = PackedASR(model)
    counted = measure(module, batch, mel_CBF).saved
    apart = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    apart |= {value.untyped_storage()._cdata for value in vars(batch).values() if isinstance(value, torch.Tensor)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in apart:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch, mel_CBF)
    assert counted == pytest.approx(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), rel=0.02)


def test_more_of_anything_takes_more(tiny):
    model, *_ = tiny
    meta = without_memory(model.config, torch.bfloat16)
    smaller = trace(meta, SHAPE)
    for name in ("tokens", "audio_tokens", "labels"):
        assert trace(meta, replace(SHAPE, **{name: 2 * getattr(SHAPE, name)})).peak > smaller.peak, name
    half = trace(meta, Shape(*(max(1, size // 2) for size in astuple(SHAPE))))
    assert half.peak == pytest.approx(smaller.peak / 2, rel=0.1)
    assert smaller.peak > smaller.saved > smaller.logits / 3
    freeze_all_but(meta, meta.model.multi_modal_projector)
    assert trace(meta, SHAPE).peak < smaller.peak
