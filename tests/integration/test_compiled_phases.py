"""Parts compiled for a phase serve its layers, all sizes and later phases; gradients are those of the eager model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import hebrew_asr.passes.packed as packed_module
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import PackedBatch, pack
from hebrew_asr.data.shapes import choose_shapes, needed_shape
from hebrew_asr.demo.tiny import TinySpec
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.compiled import CompiledASR
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.text.prompt import PromptTokens
from tests.support.attention import dense_attention
from tests.support.native import build, examples
from tests.support.tiny_task import ROOT

pytestmark = pytest.mark.integration


def test_every_phase_gets_its_own_gradients(monkeypatch):
    """Any switch and the way back give exactly the weights that train their gradients, and compile nothing twice."""
    monkeypatch.setattr(packed_module, "segment_attention", dense_attention)
    # Of the LLM one layer trains and one below it stays, as the encoder's convolutions do: more take longer to trace.
    model, tokenizer = build(TinySpec(encoder_layers=1, num_hidden_layers=2))
    batches = packed_in_sizes(tokenizer)
    compiled, eager = CompiledASR(model, backend="aot_eager"), PackedASR(model)
    tower, language_model = model.model.audio_tower, model.model.language_model
    present_V = torch.arange(len(model.lm_head.weight)) % 2 == 0
    absent = AbsentTokens(model, present_V, model.device, frozen=True)
    (head,) = [name for name, parameter in model.named_parameters() if parameter is model.lm_head.weight]
    phase_b = [model.model.multi_modal_projector, language_model.layers[-1], model.lm_head]
    phase_a = [*phase_b, tower.layers[-1]]
    phases = [phase_b, phase_a, phase_b]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # which reset leaves
    seen: list[str] = []
    graphs: list[int] = []
    for index, (modules, batch) in enumerate(zip(phases, batches, strict=True)):
        mel_CBF = LogMel()(batch)
        model.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        for each in (compiled, eager):
            absent.hold(each)
        # As the proof of phase sees gradients arrive: in a phase's first step, and in the last phase's no more.
        hooks = [
            parameter.register_hook(lambda _, name=name: seen.append(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and index < len(phases) - 1
        ]
        found = []
        for forward in (eager, compiled):
            seen.clear()
            forward(batch, mel_CBF).backward()
            found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad(set_to_none=True)
        expected, gradients = found
        assert sorted(seen) == (sorted(gradients) if hooks else [])
        for hook in hooks:
            hook.remove()
        assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad} == expected.keys()
        assert head not in gradients or torch.equal(gradients[head].any(dim=1), present_V)
        for name, gradient in expected.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-5), name
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiled.is_compiled
    assert graphs == [9, 12, 12], "one for each kind of part: a phase adds what it changes, and sizes add nothing"


def packed_in_sizes(tokenizer) -> list[PackedBatch]:
    """Batches of different numbers of clips, padded to different shapes."""
    clips, prompt, geometry = examples(tokenizer), PromptTokens.of(tokenizer), EncoderGeometry()
    chosen = [clips[:3], clips[2:5], clips[:5]]
    needed = [
        needed_shape([len(clip.samples) for clip in batch], [len(c.target_ids) for c in batch], prompt, geometry)
        for batch in chosen
    ]
    shapes = choose_shapes([[shape] for shape in needed], 4)
    packed = [pack(batch, prompt, geometry, shapes=shapes) for batch in chosen]
    assert len({len(batch.input_ids_T) for batch in packed}) > 1
    return packed


def test_what_is_compiled_is_kept_in_the_users_cache(tmp_path):
    """torch settles the folder when torch._dynamo is first imported, wherever that is.

    What ``hebrew-asr train`` checks before any rank starts needs none of it, nor transformers or pandas: they take
    seconds to load.
    """
    code = """
import sys, hebrew_asr.training.check
assert not {"transformers", "torch._dynamo", "pandas"} & {*sys.modules}
import hebrew_asr.training.setup, torch._inductor.runtime.cache_dir_utils as kept
print(kept.cache_dir())
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split()[-1] == str(tmp_path / "hebrew_asr" / "inductor"), done.stderr


@pytest.mark.parametrize("home", ["home", "file"])
def test_what_is_compiled_is_kept_at_home_if_that_can_be_written(tmp_path, home):
    (tmp_path / "file").touch()
    script = "import os, hebrew_asr.engine, torch._dynamo; print(os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    variables = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    variables |= {"HOME": str(tmp_path / home), "TMPDIR": str(tmp_path)}
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = "home/.cache/hebrew_asr/inductor" if home == "home" else "torchinductor_"
    assert done.stdout.startswith(f"{tmp_path}/{expected}"), done.stderr
