"""The packed layout: what is supervised, where the audio goes, and that nothing else is in the batch."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hebrew_asr.audio.augment import clip_seed, draw_masks, draw_speed
from hebrew_asr.audio.frames import EncoderGeometry, num_audio_tokens, num_frames
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.recipe import Augmentation
from hebrew_asr.data.collate import Example, PackedBatch, pack
from hebrew_asr.text.prompt import AUDIO_PAD, END_OF_TURN, PromptTokens, build_target
from tests.support.native import SECONDS, TRANSCRIPTS, build, examples, sound

GEOMETRY = EncoderGeometry()
PROMPT = PromptTokens(before_audio=[1, 2, 3], after_audio=[4, 5], audio_pad=9, end_of_turn=8)


@pytest.fixture(scope="module", params=["own pad", "pad is end of turn"])
def tokenizer(request):
    tokenizer = build()[1]
    if request.param == "pad is end of turn":
        tokenizer.pad_token = END_OF_TURN
    return tokenizer


def test_supervised_tokens_decode_to_exactly_the_targets(tokenizer):
    batch = pack(examples(tokenizer), PromptTokens.of(tokenizer), GEOMETRY)
    for text, labels in zip(TRANSCRIPTS, batch.labels_L.split(batch.labels_per_clip), strict=True):
        assert tokenizer.decode(labels) == build_target(text) + END_OF_TURN
    assert batch.num_labels == len(batch.labels_L)


def test_each_label_follows_its_supervised_position(tokenizer):
    batch = pack(examples(tokenizer), PromptTokens.of(tokenizer), GEOMETRY)
    ends = set((batch.clip_cu_seqlens_N2[1:] - 1).tolist())
    for position, label in zip(batch.supervised_positions_L.tolist(), batch.labels_L.tolist(), strict=True):
        if position in ends:
            assert label == tokenizer.convert_tokens_to_ids(END_OF_TURN)
        else:
            assert batch.input_ids_T[position + 1] == label


def test_the_prompt_is_the_chat_form_and_is_not_supervised(tokenizer):
    batch = pack(examples(tokenizer), PromptTokens.of(tokenizer), GEOMETRY)
    assert batch.opening_tokens == 9 and batch.supervised_positions_L.min() >= 9
    opening, clips = batch.input_ids_T[:9], batch.input_ids_T[9:]
    supervised = set((batch.supervised_positions_L - 9).tolist())
    audio_pad = tokenizer.convert_tokens_to_ids(AUDIO_PAD)
    assert torch.equal(batch.audio_positions_A, (batch.input_ids_T == audio_pad).nonzero()[:, 0])
    start = 0
    for ids, audio_tokens in zip(clips.split(batch.tokens), batch.audio_tokens, strict=True):
        text = tokenizer.decode([*opening, *ids])
        assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>" + AUDIO_PAD)
        assert text.count(AUDIO_PAD) == audio_tokens
        prompt = text[: text.index("assistant\n") + len("assistant\n")]
        num_prompt = len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) - 9
        assert [start + offset in supervised for offset in range(len(ids))] == [
            offset >= num_prompt - 1 for offset in range(len(ids))
        ]
        start += len(ids)


@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(1, 6)), min_size=1, max_size=6))
def test_layout_of_any_lengths(clips):
    batch = pack(
        [
            Example(str(index), np.ones(samples, np.int16), [7] * labels)
            for index, (samples, labels) in enumerate(clips)
        ],
        PROMPT,
        GEOMETRY,
    )
    frames = [num_frames(samples) for samples, _ in clips]
    tokens = [num_audio_tokens(count) for count in frames]
    assert (batch.frames, batch.audio_tokens) == (frames, tokens)
    assert batch.opening_tokens == 3
    assert batch.tokens == [2 + count + labels - 1 for count, (_, labels) in zip(tokens, clips, strict=True)]
    own = [torch.arange(3, 3 + count) for count in batch.tokens]
    assert torch.equal(batch.position_ids_T, torch.cat([torch.arange(3), *own]))
    bounds = [0, *(3 + sum(batch.tokens[:index]) for index in range(len(clips) + 1))]
    assert batch.clip_cu_seqlens_N2.tolist() == bounds
    windows = batch.window_cu_seqlens_W1.diff()
    assert windows.min() > 0 and windows.max() <= 104
    assert windows.tolist() == [min(104, count - first) for count in tokens for first in range(0, count, 104)]
    # every chunk keeps as many convolution outputs as its own frames give
    kept = [
        chunk * 13 + output
        for chunk, length in enumerate(min(100, count - first) for count in frames for first in range(0, count, 100))
        for output in range(num_audio_tokens(length))
    ]
    assert batch.conv_positions_A.tolist() == kept


def test_a_clip_is_augmented_alike_in_every_batch():
    augmentation = Augmentation()
    clips = []
    for index, seconds in enumerate(SECONDS):
        seed = clip_seed(3, 1, f"clip-{index}")
        speed = draw_speed(seed, augmentation.speed_factors)
        clips.append(Example(f"clip-{index}", sound(seconds, index), [7, 8], speed, seed))
    together = pack(clips, PROMPT, GEOMETRY, augmentation)
    mel = LogMel()(together).split(together.mel.first_chunk_N1.diff().tolist())
    backwards = pack(clips[::-1], PROMPT, GEOMETRY, augmentation)
    for index, clip in enumerate(clips):
        alone = pack([clip], PROMPT, GEOMETRY, augmentation)
        masks = draw_masks(clip.mask_seed or 0, alone.frames[0], augmentation)
        for batch, place in ((together, index), (backwards, -1 - index), (alone, 0)):
            assert batch.samples[place] == alone.samples[0]
            assert np.array_equal(batch.mel.freq_masks_NM2[place], masks.freq)
            assert np.array_equal(batch.mel.time_masks_NM2[place], masks.time)
        assert torch.allclose(LogMel()(alone), mel[index], atol=1e-6)


def test_only_clips_with_a_seed_are_masked():
    clip = Example("a", sound(1.0, 0), [7])
    assert pack([clip], PROMPT, GEOMETRY, Augmentation()).mel.freq_masks_NM2 is None
    assert pack([replace(clip, mask_seed=0)], PROMPT, GEOMETRY).mel.freq_masks_NM2 is None
    mixed = LogMel()(pack([clip, replace(clip, mask_seed=1)], PROMPT, GEOMETRY, Augmentation(max_time_share=0.9)))
    plain = LogMel()(pack([clip, clip], PROMPT, GEOMETRY))
    assert torch.equal(mixed[: len(mixed) // 2], plain[: len(plain) // 2])
    assert not torch.equal(mixed, plain)


def tensors_of(held) -> list[Tensor]:
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, tuple):
        return [tensor for part in held for tensor in tensors_of(part)]
    if is_dataclass(held):
        return [tensor for field in fields(held) for tensor in tensors_of(getattr(held, field.name))]
    return []


def test_moving_moves_every_tensor_and_nothing_else():
    clips = [Example(str(index), sound(1.0, index), [7], speed, 1) for index, speed in enumerate((0.9, 1.0, 1.1))]
    batch = pack(clips, PROMPT, GEOMETRY, Augmentation())
    moved = batch.to("meta")
    assert isinstance(moved, PackedBatch)
    assert len(tensors_of(moved)) == len(tensors_of(batch)) > 20
    assert all(tensor.device.type == "meta" for tensor in tensors_of(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(batch))
    assert moved.clip_ids == batch.clip_ids and moved.frames == batch.frames
