"""The operations counted by formula are those that torch's own counter sees in the packed forward and backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.collate import Example, PackedBatch, pack
from hebrew_asr.data.shapes import choose_shapes, needed_shape
from hebrew_asr.model.phases import set_phase
from hebrew_asr.model.sizes import ModelSizes
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.planning.flops import Work, pass_flops
from hebrew_asr.text.prompt import PromptTokens
from tests.support.footprint import meta_batch

PROMPT = PromptTokens(before_audio=[1] * 9, after_audio=[2] * 6, audio_pad=3, end_of_turn=4)
GEOMETRY = EncoderGeometry()


def flops(model: Qwen3ASRForConditionalGeneration, batch: PackedBatch, live_rows: int | None = None) -> float:
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return pass_flops(ModelSizes.of(model.config), trained, Work.of_batch(batch), live_rows)


def full_width(layers: int) -> Qwen3ASRForConditionalGeneration:
    """The 1.7B model with fewer layers, without memory."""
    audio = {"d_model": 1024, "encoder_layers": layers, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
    text = {"hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 8}
    text |= {"head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936, "tie_word_embeddings": True}
    audio |= {"downsample_hidden_size": 480, "output_dim": 2048}
    with torch.device("meta"):
        return Qwen3ASRForConditionalGeneration(
            Qwen3ASRConfig(audio_config=audio, text_config=text, tie_word_embeddings=True)
        )


@pytest.mark.parametrize("index", [0, 1])
def test_formula_agrees_with_the_counter(index: int):
    model, recipe = full_width(3), load_recipe("round2", ['unfrozen_layers={"llm_top": 2, "audio_top": 1}'])
    set_phase(model, recipe, recipe.phases[index])
    clip = Example("clip", np.zeros(int(4.9 * 16_000), np.int16), [5] * 25)
    batch = pack([clip], PROMPT, GEOMETRY)
    shape = needed_shape(batch.samples, batch.labels_per_clip, PROMPT, GEOMETRY)
    packed = PackedASR(model)
    with FlopCounterMode(display=False) as counter:
        packed(*meta_batch(shape)).backward()
    AbsentTokens(
        model, torch.arange(model.config.text_config.vocab_size) % 64 == 0, packed.asr.device, frozen=True
    ).hold(packed)
    with FlopCounterMode(display=False) as of_live_rows:
        packed(*meta_batch(shape)).backward()
    # The counter does not know the two products inside attention over packed clips: without length they are none.
    bounds = ("window_cu_seqlens_W1", "clip_cu_seqlens_N2")
    unattended = replace(batch, **{name: torch.zeros_like(getattr(batch, name)) for name in bounds})
    # The packed pass takes the last layer's output projection and MLP at supervised positions only.
    last = model.model.language_model.layers[-1]
    skipped = [last.mlp, last.self_attn.o_proj]
    weights = sum(weight.numel() for module in skipped for weight in module.parameters() if weight.ndim > 1)
    not_done = 3 * 2 * weights * (len(batch.input_ids_T) - batch.num_labels)
    assert flops(model, unattended) - not_done == pytest.approx(counter.get_total_flops(), rel=1e-3)
    live_rows = model.config.text_config.vocab_size // 64
    less = flops(model, unattended) - flops(model, unattended, live_rows)
    assert less == pytest.approx(counter.get_total_flops() - of_live_rows.get_total_flops(), rel=1e-3)
    assert less > 0.01 * flops(model, unattended)
    assert flops(model, unattended) * 1.001 < flops(model, batch) < 1.1 * flops(model, unattended)
    even = Work.of_shape(shape)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert pass_flops(ModelSizes.of(model.config), trained, even) == flops(model, batch), "of one clip"
    padded = pack([clip], PROMPT, GEOMETRY, shapes=choose_shapes([[shape]], 1))
    assert len(padded.input_ids_T) > len(batch.input_ids_T)
    assert flops(model, padded) == flops(model, batch), "padding is not work done"
