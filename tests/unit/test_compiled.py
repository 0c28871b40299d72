"""Where the step cannot be compiled, training goes on eagerly after one warning; the profile owns the switch."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.profiles import load_profile
from hebrew_asr.data.collate import pack
from hebrew_asr.passes.compiled import CompiledASR
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.text.prompt import PromptTokens
from tests.support.native import build, examples
from tests.support.tiny_task import BF16


def test_falls_back_to_eager_after_one_warning():
    """On a CPU it always does: attention reads its segments' lengths on the host, which no whole graph can hold."""
    model, tokenizer = build()
    batch = pack(examples(tokenizer)[:3], PromptTokens.of(tokenizer), EncoderGeometry())
    mel_CBF = LogMel()(batch)
    compiled = CompiledASR(model, backend="eager")
    with pytest.warns(RuntimeWarning, match="could not be compiled and runs eagerly") as told:
        first = compiled(batch, mel_CBF)
    assert len([warning for warning in told if warning.category is RuntimeWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = compiled(batch, mel_CBF)
    assert not compiled.is_compiled
    second.backward()
    assert torch.equal(first, second) and torch.equal(first, PackedASR(model)(batch, mel_CBF))


@pytest.mark.parametrize(
    ("hardware", "stage", "compiles"),
    [
        ({"accelerator": "cuda"}, 2, True),
        ({"accelerator": "cuda", "compile": False}, 2, False),
        ({"accelerator": "cuda"}, 3, True),
        ({"accelerator": "cuda", "compile": False}, 3, False),
        ({"accelerator": "cpu"}, 2, False),
        ({"accelerator": "cpu", "compile": True}, 2, True),
    ],
)
def test_the_profile_says_what_to_compile(tmp_path, hardware, stage, compiles):
    path = tmp_path / "profile.json"
    values = {"_hardware": hardware, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}}
    path.write_text(json.dumps({**values, **BF16}))
    profile = load_profile(path)
    assert profile.compiles == compiles
    path.write_text(json.dumps(values))
    profile = load_profile(path)
    assert profile.compiles == (compiles and hardware["accelerator"] == "cpu"), "in fp32"
    offloaded = {**values, **BF16, "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}
    path.write_text(json.dumps(offloaded))
    assert load_profile(path).compiles == (compiles and stage == 2), "DeepSpeed's own hooks gather the weights"
