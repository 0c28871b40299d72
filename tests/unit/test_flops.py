"""The operations counted by formula, for the full-size model, against torch's own counter on its native forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.data.collate import Example, needed_shape, pack
from hebrew_asr.data.shapes import choose_shapes
from hebrew_asr.model.phases import set_phase
from hebrew_asr.planning.flops import step_flops
from hebrew_asr.text.prompt import PromptTokens

PROMPT = PromptTokens(before_audio=[1] * 9, after_audio=[2] * 6, audio_pad=3, end_of_turn=4)
COUNTED_GFLOP = {"B": 828.3, "A": 854.4}
"""``FlopCounterMode`` over forward and backward of a 4.9 s clip: 64 audio tokens, 15 of prompt, 25 supervised."""


def full_size() -> Qwen3ASRForConditionalGeneration:
    audio = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
    text = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    text |= {"head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936, "tie_word_embeddings": True}
    audio |= {"downsample_hidden_size": 480, "output_dim": 2048}
    with torch.device("meta"):
        return Qwen3ASRForConditionalGeneration(
            Qwen3ASRConfig(audio_config=audio, text_config=text, tie_word_embeddings=True)
        )


@pytest.mark.parametrize("index", [0, 1])
def test_formula_agrees_with_the_counter(index: int):
    model, recipe = full_size(), load_recipe("round2")
    set_phase(model, recipe, recipe.phases[index])
    clip = Example("clip", np.zeros(int(4.9 * 16_000), np.int16), [5] * 25)
    batch = pack([clip], PROMPT, EncoderGeometry())
    assert (batch.audio_tokens, batch.tokens) == ([64], [103])
    expected = COUNTED_GFLOP[recipe.phases[index].name]
    assert step_flops(model, [batch]) / 1e9 == pytest.approx(expected, rel=0.02)
    shape = needed_shape(batch.samples, batch.labels_per_clip, PROMPT, EncoderGeometry())
    padded = pack([clip], PROMPT, EncoderGeometry(), shapes=choose_shapes([shape], 1))
    assert len(padded.input_ids_T) > 103
    assert step_flops(model, [padded]) == step_flops(model, [batch]), "padding is not work done"
