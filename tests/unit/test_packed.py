"""The packed loss and its gradients against the native forward, one clip at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import Augmentation
from hebrew_asr.data.bundled import _opened
from hebrew_asr.data.collate import Example, PackedBatch, pack
from hebrew_asr.demo.tiny import TinySpec
from hebrew_asr.passes import attention
from hebrew_asr.passes.attention import Segments, segment_attention
from hebrew_asr.passes.packed import PackedASR, first_convolution
from hebrew_asr.text.prompt import PromptTokens
from tests.support.native import build, clip_loss, examples, features, sound

SPEC = TinySpec(d_model=32, encoder_ffn_dim=64, hidden_size=48, intermediate_size=96, head_dim=16, num_hidden_layers=4)
"""Two query heads share a key-value head, and all heads together are wider than the hidden state."""
GEOMETRY = EncoderGeometry()


@pytest.fixture()
def packed_and_clips():
    model, tokenizer = build(SPEC)
    return PackedASR(model), examples(tokenizer), PromptTokens.of(tokenizer)


def forward(packed: PackedASR, clips: list[Example], prompt: PromptTokens) -> Tensor:
    batch = pack(clips, prompt, GEOMETRY)
    return packed(batch, LogMel()(batch))


def losses_of_clips(packed: PackedASR, clips: list[Example], prompt: PromptTokens) -> Tensor:
    batch = pack(clips, prompt, GEOMETRY)
    with torch.no_grad():
        logits = packed.asr.lm_head(packed.hidden_states(batch, LogMel()(batch)))
    losses = F.cross_entropy(logits, batch.labels_L, reduction="none")
    return torch.stack([part.sum() for part in losses.split(batch.labels_per_clip)])


def take_gradients(model) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(grad.norm() for grad in expected.values())
    for name, grad in expected.items():
        # The bias of the keys moves all scores of a query alike: without rounding its gradient would be zero.
        scale = largest if name.endswith("k_proj.bias") else grad.norm()
        assert (found[name] - grad).norm() <= 1e-5 * scale, name


def test_loss_and_gradients_equal_the_native_forward_clip_by_clip(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    assert packed.asr.lm_head.weight is packed.asr.model.language_model.embed_tokens.weight
    native = torch.stack([clip_loss(packed.asr, clip, prompt) for clip in clips]).sum()
    native.backward()
    expected = take_gradients(packed.asr)
    loss = forward(packed, clips, prompt)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert abs(loss.item() - native.item()) <= 1e-6 * native.item()
    assert expected.keys() == dict(packed.asr.named_parameters()).keys()
    assert_same_gradients(take_gradients(packed.asr), expected)


def test_a_clip_does_not_see_its_batch_mates(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    before = losses_of_clips(packed, clips, prompt)
    other = replace(clips[3], samples=sound(7.0, 99), target_ids=clips[5].target_ids)
    after = losses_of_clips(packed, [*clips[:3], other, *clips[4:]], prompt)
    kept = [0, 1, 2, 4, 5, 6]
    assert torch.allclose(before[kept], after[kept], rtol=1e-6)
    assert abs(before[3] - after[3]) > 1e-2
    assert torch.allclose(losses_of_clips(packed, clips[::-1], prompt), before.flip(0), rtol=1e-6)


def test_encoder_windows_end_at_eight_seconds(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    batch = pack([replace(clips[0], samples=sound(12.0, 0))], prompt, GEOMETRY)
    mel_CBF = LogMel()(batch)
    changed_CBF = mel_CBF.clone()
    changed_CBF[-1] += 1.0
    difference = (packed.audio_embeddings(batch, mel_CBF) - packed.audio_embeddings(batch, changed_CBF)).abs().amax(1)
    assert difference[:104].max() == 0
    assert difference[104:].min() > 1e-4


def test_audio_embeddings_equal_the_native_encoder(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    batch = pack(clips, prompt, GEOMETRY)
    found = packed.audio_embeddings(batch, LogMel()(batch)).split(batch.audio_tokens)
    for clip, embeddings in zip(clips, found, strict=True):
        native = packed.asr.get_audio_features(*features(clip.samples)).pooler_output
        assert torch.allclose(embeddings, native, atol=1e-5)


@pytest.mark.parametrize("frozen_layers", [0, 2, 3])
def test_frozen_bottom_leaves_no_graph_and_changes_nothing_else(packed_and_clips, frozen_layers: int):
    packed, clips, prompt = packed_and_clips
    whole = forward(packed, clips, prompt)
    whole.backward()
    expected = take_gradients(packed.asr)

    tower = packed.asr.model.audio_tower
    stem = [tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out]
    for module in [*stem, *tower.layers[:frozen_layers]]:
        module.requires_grad_(False)
    in_graph: dict[str, bool] = {}
    for name, module in [("stem", tower.conv_out)] + [(str(i), layer.fc2) for i, layer in enumerate(tower.layers)]:
        module.register_forward_hook(lambda _, __, output, name=name: in_graph.update({name: output.requires_grad}))
    loss = forward(packed, clips, prompt)
    loss.backward()

    assert in_graph == {"stem": False, **{str(index): index >= frozen_layers for index in range(3)}}
    assert torch.equal(loss, whole)
    trained = {name for name, parameter in packed.asr.named_parameters() if parameter.requires_grad}
    assert_same_gradients(take_gradients(packed.asr), {name: expected[name] for name in trained})


def test_a_trainable_part_below_a_frozen_one_still_gets_its_gradient(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    packed.asr.requires_grad_(False)
    stem = packed.asr.model.audio_tower.conv2d1.requires_grad_(True)
    forward(packed, clips[:2], prompt).backward()
    assert stem.weight.grad is not None and stem.weight.grad.norm() > 0


def test_gradient_mode_is_the_callers(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    with torch.no_grad():
        assert not forward(packed, clips[:2], prompt).requires_grad
    assert forward(packed, clips[:2], prompt).requires_grad


def test_native_generation_is_left_alone(packed_and_clips):
    packed, clips, prompt = packed_and_clips
    model = packed.asr
    mel, mask = features(clips[3].samples)
    ids = torch.tensor([prompt.prompt(17)])

    def generated() -> list[int]:
        out = model.generate(
            input_ids=ids, input_features=mel, input_features_mask=mask, max_new_tokens=8, do_sample=False
        )
        return out[0].tolist()

    before = generated()
    implementations = (model.config.text_config._attn_implementation, model.config.audio_config._attn_implementation)
    forward(packed, clips, prompt).backward()
    assert generated() == before
    assert implementations == ("sdpa", "sdpa")
    assert implementations == (
        model.config.text_config._attn_implementation,
        model.config.audio_config._attn_implementation,
    )


def test_bfloat16_stays_close_to_float32(packed_and_clips):
    """Eight bits of mantissa: the loss within half a percent, the gradient within 5 % in norm."""
    packed, clips, prompt = packed_and_clips
    loss = forward(packed, clips, prompt)
    loss.backward()
    expected = take_gradients(packed.asr)
    for parameter in packed.asr.parameters():
        parameter.data = parameter.data.bfloat16()
    half = forward(packed, clips, prompt)
    half.backward()
    found = take_gradients(packed.asr)
    assert half.dtype == torch.float32
    assert abs(half.item() - loss.item()) < 5e-3 * loss.item()
    error = math.sqrt(sum((found[name].float() - grad).square().sum().item() for name, grad in expected.items()))
    assert error < 0.05 * math.sqrt(sum(grad.square().sum().item() for grad in expected.values()))


@pytest.mark.parametrize(
    "kernel", [{"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (4, 2), "stride": (3, 1)}]
)
def test_the_first_convolution_as_a_product(kernel):
    convolution = torch.nn.Conv2d(1, 24, **kernel)
    mel_C1BF = torch.randn(5, 1, 128, 100)
    found, expected = first_convolution(convolution, mel_C1BF), convolution(mel_C1BF)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("causal", "opening"), [(False, 0), (True, 0), (True, 4), (False, 4)])
def test_attention_within_segments(causal: bool, opening: int):
    torch.manual_seed(0)
    lengths, heads, key_value_heads, width = [4, 5, 1, 16], 6, 2, 8
    query = torch.randn(26, heads, width, requires_grad=True)
    key, value = (torch.randn(26, key_value_heads, width, requires_grad=True) for _ in range(2))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    found = segment_attention(query, key, value, Segments.of(cu_seqlens, 26, opening), causal=causal, scale=0.3)

    segment = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    visible = segment[:, None] == segment[None]
    if causal:
        visible = visible.tril()
    visible[opening:, :opening] = True
    repeated_key, repeated_value = (part.repeat_interleave(heads // key_value_heads, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, repeated_key) * 0.3
    shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", shares, repeated_value)
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_cuda_path_never_waits_for_a_value_on_the_device(monkeypatch):
    """Fake tensors hold no data: reading one on the host, or a shape that depends on data, raises."""
    monkeypatch.setattr(attention, "_can_build_kernels", lambda: True)
    model, tokenizer = build(SPEC)
    packed = PackedASR(model)
    clips = [
        replace(clip, speed=speed, mask_seed=0)
        for clip, speed in zip(examples(tokenizer), (0.9, 1.0, 1.1, 1.0, 0.9, 1.0, 1.1), strict=True)
    ]
    batch = pack(clips, PromptTokens.of(tokenizer), GEOMETRY, Augmentation())
    laid_together = batch._bundled()
    with FakeTensorMode() as mode:

        def on_cuda(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            return torch.empty_like(mode.from_tensor(tensor), device="cuda", dtype=dtype).detach()

        memory, values = laid_together
        moved = _opened(PackedBatch, on_cuda(memory), values)
        mel_CBF = LogMel().to("cuda")(moved)
        weights = {name: on_cuda(parameter, torch.bfloat16) for name, parameter in packed.named_parameters()}
        buffers = {name: on_cuda(buffer) for name, buffer in packed.named_buffers()}
        loss = torch.func.functional_call(packed, {**weights, **buffers}, (moved, mel_CBF))
    assert mel_CBF.shape[1:] == (128, 100) and mel_CBF.device.type == "cuda"
    assert loss.shape == () and loss.dtype == torch.float32
