"""The CUDA path: attention by kernels in bfloat16 against the native model and float32, and no wait for the device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import Augmentation
from hebrew_asr.data.collate import Example, pack
from hebrew_asr.passes.attention import Segments, segment_attention
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.text.prompt import PromptTokens
from tests.support.gpu_task import no_host_sync
from tests.support.native import build, clip_loss, examples

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GEOMETRY = EncoderGeometry()
Gradients = dict[str, Tensor]


def clips_and_prompt(tokenizer) -> tuple[list[Example], PromptTokens]:
    return examples(tokenizer), PromptTokens.of(tokenizer)


def to_bfloat16(model) -> None:
    """Weights only: the rotary frequencies stay float32, as after ``from_pretrained(dtype=…)``."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()


def packed_loss(model, clips: list[Example], prompt: PromptTokens) -> Tensor:
    device = model.device
    batch = pack(clips, prompt, GEOMETRY).to(device)
    return PackedASR(model)(batch, LogMel().to(device)(batch))


def native_loss(model, clips: list[Example], prompt: PromptTokens) -> Tensor:
    return torch.stack([clip_loss(model, clip, prompt) for clip in clips]).sum()


def loss_and_gradients(model, loss: Tensor) -> tuple[float, Gradients]:
    loss.backward()
    found = {name: parameter.grad.float().cpu() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return loss.item(), found


def distance(found: Gradients, expected: Gradients) -> float:
    """Relative error of all gradients together."""
    error = sum((found[name] - grad).square().sum().item() for name, grad in expected.items())
    return math.sqrt(error / sum(grad.square().sum().item() for grad in expected.values()))


def test_bfloat16_is_as_close_to_float32_as_the_native_model():
    model, tokenizer = build()
    clips, prompt = clips_and_prompt(tokenizer)
    expected_loss, expected = loss_and_gradients(model, native_loss(model, clips, prompt))
    model.cuda()
    to_bfloat16(model)
    native, native_gradients = loss_and_gradients(model, native_loss(model, clips, prompt))
    packed, packed_gradients = loss_and_gradients(model, packed_loss(model, clips, prompt))
    print(f"loss: float32 {expected_loss:.3f}, native bf16 {native:.3f}, packed bf16 {packed:.3f}")
    errors = distance(native_gradients, expected), distance(packed_gradients, expected)
    print(f"relative error of the gradients: native bf16 {errors[0]:.4f}, packed bf16 {errors[1]:.4f}")
    assert abs(packed - expected_loss) < 5e-3 * expected_loss
    assert errors[1] < 1.2 * errors[0] < 0.1


def test_float32_on_cuda_equals_the_native_forward_on_the_host(monkeypatch):
    model, tokenizer = build()
    clips, prompt = clips_and_prompt(tokenizer)
    expected_loss, expected = loss_and_gradients(model, native_loss(model, clips, prompt))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    loss, found = loss_and_gradients(model, packed_loss(model.cuda(), clips, prompt))
    assert abs(loss - expected_loss) < 1e-5 * expected_loss
    assert distance(found, expected) < 1e-4


def test_a_training_step_never_waits_for_the_device():
    model, tokenizer = build()
    model.cuda()
    to_bfloat16(model)
    clips, prompt = clips_and_prompt(tokenizer)
    speeds = (0.9, 1.0, 1.1, 1.0, 0.9, 1.0, 1.1)
    clips = [replace(clip, speed=speed, mask_seed=0) for clip, speed in zip(clips, speeds, strict=True)]
    pinned = pack(clips, prompt, GEOMETRY, Augmentation()).pin_memory()
    assert pinned.waveform_S.is_pinned() and pinned.mel.frames_N.is_pinned()
    log_mel, packed = LogMel().cuda(), PackedASR(model)

    def step() -> Tensor:
        batch = pinned.to("cuda", non_blocking=True)
        loss = packed(batch, log_mel(batch))
        loss.backward()
        return loss.detach()

    first = step()  # libraries initialize
    with no_host_sync():
        second = step()
    assert torch.isfinite(first) and torch.isfinite(second)


def test_features_equal_the_hosts():
    _, tokenizer = build()
    clips, prompt = clips_and_prompt(tokenizer)
    clips = [replace(clip, speed=(0.9, 1.0, 1.1)[index % 3], mask_seed=index) for index, clip in enumerate(clips)]
    batch = pack(clips, prompt, GEOMETRY, Augmentation())
    apart = (LogMel().cuda()(batch.to("cuda")).cpu() - LogMel()(batch)).abs()
    # Bands that the speed has emptied lie near the floor of 80 dB below the loudest, where the rounding of fp32 shows.
    assert apart.max() < 2e-3 and (apart < 1e-4).float().mean() > 0.99


@pytest.mark.parametrize(("causal", "opening"), [(False, 0), (False, 17), (True, 0), (True, 1), (True, 9), (True, 16)])
@pytest.mark.parametrize("width", [24, 64, 128])
def test_attention_by_kernels_equals_that_by_segment(causal: bool, opening: int, width: int):
    torch.manual_seed(0)
    lengths, heads, key_value_heads = [opening or 9, 7, 1, 104, 333], 8, 4
    parts = [
        torch.randn(sum(lengths), count, width, device="cuda") for count in (heads, key_value_heads, key_value_heads)
    ]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().cuda()
    weight = torch.randn(sum(lengths), heads, width, device="cuda")
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (part.bfloat16().to(dtype).requires_grad_() for part in parts)
        segments = Segments.of(cu_seqlens, sum(lengths), opening)
        out = segment_attention(query, key, value, segments, causal=causal, scale=width**-0.5)
        results.append([out, *torch.autograd.grad((out * weight.to(dtype)).sum(), (query, key, value))])
    for exact, half in zip(*results, strict=True):
        assert (half.float() - exact).norm() < 1e-2 * exact.norm()


def test_the_step_compiles_whole():
    """``fullgraph`` refuses any graph break: no host sync, no shape that depends on data."""
    model, tokenizer = build()
    model.cuda()
    to_bfloat16(model)
    clips, prompt = clips_and_prompt(tokenizer)
    batch = pack(clips, prompt, GEOMETRY).to("cuda")
    mel_CBF = LogMel().cuda()(batch)
    packed = PackedASR(model)
    compiled = torch.compile(packed, fullgraph=True, dynamic=False)
    eager_loss, eager = loss_and_gradients(model, packed(batch, mel_CBF))
    loss, found = loss_and_gradients(model, compiled(batch, mel_CBF))
    assert abs(loss - eager_loss) < 5e-3 * eager_loss
    assert distance(found, eager) < 0.1
