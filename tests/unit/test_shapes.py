"""Static shapes: they hold every batch, waste little, and their padding changes neither loss nor gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.batching import derive_batching
from hebrew_asr.config.profiles import load_profile
from hebrew_asr.config.recipe import Augmentation, load_recipe
from hebrew_asr.data.collate import IGNORED, Example, PackedBatch, pack
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.shapes import Shape, _cut_points, choose_shapes, fitting, holding_all, needed_shape
from hebrew_asr.demo.tiny import TinySpec
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.passes.recorded import _READ
from hebrew_asr.planning.bench_corpus import draw_clips
from hebrew_asr.planning.plan import LengthTokenizer
from hebrew_asr.text.prompt import PromptTokens
from tests.support.native import build
from tests.support.native import examples as native_examples
from tests.support.properties import examples
from tests.support.tiny_task import ROOT

GEOMETRY = EncoderGeometry()
PROMPT = PromptTokens(before_audio=[1, 2, 3], after_audio=[4, 5], audio_pad=9, end_of_turn=8)
SPEC = TinySpec(d_model=32, encoder_ffn_dim=64, hidden_size=48, intermediate_size=96, head_dim=16, num_hidden_layers=4)
SAMPLES = st.integers(1, 480_000) | st.sampled_from([1, 8_000, 128_000, 480_000])
BATCHES = st.lists(st.lists(st.tuples(SAMPLES, st.integers(1, 80)), min_size=1, max_size=9), min_size=1, max_size=6)


def batch_of(clips: list[tuple[int, int]], shapes: list[Shape]) -> PackedBatch:
    made = [Example(str(i), np.ones(samples, np.int16), [7] * labels) for i, (samples, labels) in enumerate(clips)]
    return pack(made, PROMPT, GEOMETRY, shapes=shapes)


def needed(clips: list[tuple[int, int]]) -> Shape:
    return needed_shape([samples for samples, _ in clips], [labels for _, labels in clips], PROMPT, GEOMETRY)


@given(BATCHES)
def test_a_batch_needs_what_packing_it_takes(batches):
    for clips in batches:
        assert batch_of(clips, []).shape == needed(clips)


@st.composite
def needs(draw: st.DrawFn) -> Shape:
    """Any batch: from one clip to a hundred, of long segments or with one item each."""
    windows, clips = draw(st.integers(1, 150)), draw(st.integers(1, 100))
    return Shape(
        tokens=draw(st.integers(clips, clips * 600)),
        audio_tokens=draw(st.integers(windows, windows * 300)),
        chunks=draw(st.integers(1, 500)),
        windows=windows,
        clips=clips,
        labels=draw(st.integers(1, 2000)),
    )


@examples(500)
@given(st.lists(st.lists(needs(), min_size=1, max_size=3), min_size=1, max_size=20), st.integers(1, 6), needs())
def test_a_chosen_shape_holds_all_that_it_was_chosen_for(seen, count, rare):
    shapes = choose_shapes(seen, count)
    assert 1 <= len(shapes) <= count and shapes == sorted(shapes, key=lambda shape: shape.tokens)
    tokens = [max(needed.tokens for needed in together) for together in seen]
    ordered = [together for _, together in sorted(zip(tokens, seen, strict=True), key=lambda pair: pair[0])]
    for number, cut in enumerate(_cut_points(sorted(tokens), count - 1), 1):
        upto = [needed for together in ordered[: cut + 1] for needed in together]
        assert any(all(map(shape.holds, upto)) for shape in shapes[:number])
    for together in seen:
        assert all(map(holding_all(together, shapes)[0].holds, together)), "on every rank the same one"
    assert fitting(rare, shapes).holds(rare)
    assert holding_all([replace(rare, chunks=shapes[-1].chunks + 1)], shapes) == shapes, "to be grown, each rank's own"


@pytest.mark.parametrize(("profile", "ranks", "most_percent"), [("h200x1", 1, 1.2), ("a100x8", 8, 4.7)])
def test_few_tokens_are_padding_and_few_batches_need_the_largest_shape(profile, ranks, most_percent):
    recipe = load_recipe("round2", [])
    batching = derive_batching(load_profile(ROOT / "ds_configs" / f"{profile}.json"), recipe, ranks)
    dataset = StepDataset(draw_clips("train", 20_000), batching, recipe, LengthTokenizer(), GEOMETRY, rank=0)
    shapes = dataset.fix_shapes(5 * dataset.steps_per_epoch)
    unseen = dataset._needed_together(list(range(1, 1500, 7)))
    found = [holding_all(together, shapes)[0] for together in unseen]
    needed = sum(max(one.tokens for one in together) for together in unseen)
    assert sum(shape.tokens for shape in found) <= (1 + most_percent / 100) * needed
    assert set(found) <= set(shapes) and found.count(shapes[-1]) <= 0.01 * len(found)
    assert all(map(shape.holds, together) for shape, together in zip(found, unseen, strict=True))


@given(BATCHES, BATCHES, st.integers(1, 4))
@example([[(1, 1), (1, 1), (1, 1), (192_160, 1)], [(1, 1)] * 17], [[(1, 1)]], 1)
def test_any_batch_is_padded_to_whole_segments(seen, unseen, count):
    shapes = choose_shapes([[needed(clips)] for clips in seen], count)
    assert 1 <= len(shapes) <= count and shapes == sorted(shapes, key=lambda shape: shape.tokens)
    recorded: dict[Shape, list[int]] = {}
    for clips in [*seen, *unseen]:
        shape = fitting(needed(clips), shapes)
        batch = batch_of(clips, shapes)
        assert batch.shape == shape
        sizes = [len(getattr(batch, name)) for name in _READ]
        assert recorded.setdefault(shape, sizes) == sizes, "a recording of the same shape does not serve this batch"
        for bounds in (batch.window_cu_seqlens_W1, batch.clip_cu_seqlens_N2):
            assert bounds[0] == 0 and bounds.diff().min() >= 1
        assert batch.clip_cu_seqlens_N2[-1] == shape.tokens and batch.window_cu_seqlens_W1[-1] == shape.audio_tokens
        assert (batch.labels_L != IGNORED).sum() == batch.num_labels
        assert batch.audio_positions_A[sum(batch.audio_tokens) :].eq(shape.tokens - 1).all()
    for clips in seen:
        assert fitting(needed(clips), shapes) in shapes


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 4))
def test_cut_points_waste_least(values, count):
    ordered = sorted(values)

    def waste(cuts: tuple[int, ...]) -> int:
        return sum(ordered[next(cut for cut in cuts if cut >= index)] - value for index, value in enumerate(ordered))

    last = len(ordered) - 1
    choices = [(*cuts, last) for size in range(min(count, len(ordered))) for cuts in combinations(range(last), size)]
    found = tuple(_cut_points(ordered, count))
    assert len(found) <= count
    assert waste(found) == min(waste(cuts) for cuts in choices)


@pytest.mark.parametrize("chosen", [[6], [0, 1, 2], [2, 4, 3, 1, 0, 5]])
def test_padding_changes_neither_loss_nor_gradients(chosen: list[int]):
    model, tokenizer = build(SPEC)
    clips, prompt = native_examples(tokenizer), PromptTokens.of(tokenizer)
    packed, log_mel = PackedASR(model), LogMel()
    largest = needed_shape([len(clip.samples) for clip in clips], [len(c.target_ids) for c in clips], prompt, GEOMETRY)
    shapes = choose_shapes([[largest]], 1)
    found = []
    for offered in ([], shapes):
        batch = pack([clips[index] for index in chosen], prompt, GEOMETRY, Augmentation(), shapes=offered)
        mel_CBF = log_mel(batch)
        assert len(mel_CBF) == batch.shape.chunks
        loss = packed(batch, mel_CBF)
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
        model.zero_grad(set_to_none=True)
    (loss, gradients), (padded_loss, padded) = found
    assert abs(padded_loss - loss) <= 1e-6 * loss
    largest_norm = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.isfinite(padded[name]).all(), name
        # The bias of the keys has no gradient but rounding.
        scale = largest_norm if name.endswith("k_proj.bias") else gradient.norm()
        # Longer sums over the chunks are rounded in another order, by an order that depends on the processor.
        assert (padded[name] - gradient).norm() <= 1e-5 * scale, name
