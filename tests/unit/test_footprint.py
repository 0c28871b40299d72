"""Memory of a pass by arithmetic is that of the pass on the meta device, and that is what a real one allocates."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3ASRForConditionalGeneration

import hebrew_asr.passes.packed as packed_module
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import Recipe, load_recipe
from hebrew_asr.data.collate import pack
from hebrew_asr.data.shapes import Shape, needed_shape
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.phases import set_phase, shapes_of
from hebrew_asr.model.sizes import PUBLISHED, ModelSizes, weight_shapes
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.planning.activations import footprint
from hebrew_asr.text.prompt import PromptTokens
from tests.support.attention import dense_attention
from tests.support.footprint import Footprint as Traced
from tests.support.footprint import config_of, measure, meta_batch, trace, without_memory
from tests.support.native import build, examples


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
    monkeypatch.setattr(packed_module, "segment_attention", dense_attention)
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


@cache
def made(sizes: ModelSizes, dtype: torch.dtype) -> Qwen3ASRForConditionalGeneration:
    return without_memory(config_of(sizes), dtype)


def traced(sizes: ModelSizes, recipe: Recipe, index: int, shape: Shape, width: int) -> tuple[Traced, set[str]]:
    """A real pass without memory, and the names of what trains in it."""
    asr = made(sizes, torch.bfloat16 if width == 2 else torch.float32)
    shapes = weight_shapes(sizes)
    assert list(shapes_of(asr).items()) == list(shapes.items())
    groups = phase_groups(shapes, recipe, recipe.phases[index])
    set_groups = set_phase(asr, recipe, recipe.phases[index])
    assert [(group.name, tuple(group.parameters)) for group in set_groups] == [(g.name, g.weights) for g in groups]
    names = {name for group in groups for name in group.weights}
    assert names == {name for name, weight in asr.named_parameters() if weight.requires_grad}
    return trace(asr, shape), names


def recipe_for(sizes: ModelSizes, *groups: str, spared: int = 2) -> Recipe:
    """Both phases train ``groups``, with all layers but ``spared`` of encoder and LLM where they are among them."""
    layers = {"llm_top": sizes.num_hidden_layers - spared, "audio_top": sizes.encoder_layers - spared}
    rates = json.dumps(dict.fromkeys(groups, 1e-5))
    phases = [f"phases.{index}.learning_rates={rates}" for index in range(2)]
    return load_recipe("round2", [f"unfrozen_layers={json.dumps(layers)}", *phases])


B = ("projector", "llm_top", "head")
TINY = ModelSizes(64, 3, 4, 128, 96, 96, 192, 3, 4, 2, 32, 300, 32)
FEW = {
    name: replace(PUBLISHED[f"Qwen/Qwen3-ASR-{name}"], encoder_layers=3, num_hidden_layers=4)
    for name in ("1.7B", "0.6B")
}
LARGE, SMALL = Shape(6912, 4736, 392, 119, 87, 1408), Shape(1472, 1088, 88, 25, 14, 320)
CASES = [
    (PUBLISHED["Qwen/Qwen3-ASR-1.7B"], load_recipe("round2"), 1, LARGE, 2),
    (PUBLISHED["Qwen/Qwen3-ASR-0.6B"], load_recipe("round2"), 0, SMALL, 2),
    *(
        (sizes, recipe_for(sizes, *groups, spared=spared), 0, shape, 2)
        for sizes in (*FEW.values(), replace(FEW["1.7B"], tie_word_embeddings=False))
        for groups, spared, shape in (
            (B, 2, SMALL),
            ((*B, "audio_top"), 1, LARGE),
            ((*B, "audio_top", "audio_stem"), 0, SMALL),
            (("head",), 2, SMALL),
            (("audio_stem", "llm_top"), 1, SMALL),
        )
    ),
    *(
        (TINY, recipe_for(TINY, *groups, spared=1), 0, shape, width)
        for groups in (("projector",), ("audio_top",), ("audio_stem",), B)
        for shape, width in ((LARGE, 4), (SMALL, 2))
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_arithmetic_is_the_pass(case):
    """Names and shapes of all weights, too: ``traced`` compares them."""
    sizes, recipe, index, shape, width = CASES[case]
    real, names = traced(sizes, recipe, index, shape, width)
    counted = footprint(sizes, names, shape, width)
    assert counted.saved == pytest.approx(real.saved, rel=2e-4)
    assert counted.peak == pytest.approx(real.peak, rel=6e-3)
    assert counted.peak > counted.saved > counted.logits / 4
