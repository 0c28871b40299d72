"""The compiled step on CUDA: equal to the eager one on padded batches, each part once, no host sync."""

from __future__ import annotations

import math

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import PackedBatch, pack
from hebrew_asr.data.shapes import choose_shapes, needed_shape
from hebrew_asr.fallbacks import take_fallbacks
from hebrew_asr.passes.absent_tokens import AbsentTokens
from hebrew_asr.passes.compiled import CompiledASR
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.text.prompt import PromptTokens
from tests.gpu.test_packed_gpu import to_bfloat16
from tests.support.gpu_task import no_host_sync
from tests.support.native import build, examples

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GEOMETRY = EncoderGeometry()
CHOSEN = [[0, 1, 4], [5, 2], [3, 4, 1, 0]]


def padded_batches(tokenizer) -> list[PackedBatch]:
    """Different clips, one shape."""
    clips, prompt = examples(tokenizer), PromptTokens.of(tokenizer)
    picked = [[clips[index] for index in chosen] for chosen in CHOSEN]
    needed = [
        needed_shape([len(clip.samples) for clip in batch], [len(c.target_ids) for c in batch], prompt, GEOMETRY)
        for batch in picked
    ]
    shapes = choose_shapes([needed], 1)
    return [pack(batch, prompt, GEOMETRY, shapes=shapes).to("cuda") for batch in picked]


@pytest.mark.parametrize("recorded", [False, True])
def test_compiled_equals_eager_in_every_phase(recorded: bool):
    model, tokenizer = build()
    model.cuda()
    to_bfloat16(model)
    log_mel = LogMel().cuda()
    inputs = [(batch, log_mel(batch)) for batch in padded_batches(tokenizer)]
    take_fallbacks()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # which reset leaves
    compiled, eager = CompiledASR(model, recorded=recorded), PackedASR(model)
    present_V = torch.arange(len(model.lm_head.weight)) % 2 == 0
    absent = AbsentTokens(model, present_V, model.device, frozen=True)
    (head,) = [name for name, parameter in model.named_parameters() if parameter is model.lm_head.weight]
    phase_b = [model.model.multi_modal_projector, model.model.language_model.layers[-1], model.lm_head]
    for modules in (phase_b, [*phase_b, model.model.audio_tower.layers[-1]], phase_b):
        model.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        for each in (compiled, eager):
            absent.hold(each)
        compiled.find_seam()
        for batch, mel_CBF in inputs:
            results = []
            for forward in (eager, compiled):
                loss = forward(batch, mel_CBF)
                loss.backward()
                gradients = {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}
                results.append((loss.item(), gradients))
                model.zero_grad(set_to_none=True)
            (expected_loss, expected), (found_loss, found) = results
            assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
            assert abs(found_loss - expected_loss) < 5e-3 * expected_loss
            for of_head in (gradients[head] for gradients in (expected, found)):
                assert torch.equal(of_head.any(dim=1).cpu(), present_V)
            error = sum((found[name] - gradient).square().sum().item() for name, gradient in expected.items())
            assert math.sqrt(error / sum(g.square().sum().item() for g in expected.values())) < 0.1
    assert compiled.is_compiled and not take_fallbacks(), "recorded, not launched"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_compiled_step_never_waits_for_the_device(recorded: bool):
    model, tokenizer = build()
    model.cuda()
    to_bfloat16(model)
    take_fallbacks()
    log_mel, compiled = LogMel().cuda(), CompiledASR(model, recorded=recorded)
    present_V = torch.arange(len(model.lm_head.weight)) % 2 == 0
    AbsentTokens(model, present_V, model.device, frozen=True).hold(compiled)
    compiled.find_seam()
    batches = padded_batches(tokenizer)
    for batch in batches[:2]:
        compiled(batch, log_mel(batch)).backward()
        model.zero_grad(set_to_none=True)
    with no_host_sync():
        compiled(batches[2], log_mel(batches[2])).backward()
    assert compiled.is_compiled and not take_fallbacks(), "recorded, not launched"
