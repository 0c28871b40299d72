"""A batch goes to another process, and to a device, as one tensor, and comes out as it was."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.config.recipe import Augmentation
from hebrew_asr.data.collate import PackedBatch, pack
from hebrew_asr.text.prompt import PromptTokens
from tests.support.native import build, examples


def values(held: Any) -> Iterator[Any]:
    """Everything that a batch holds, in order."""
    if is_dataclass(held):
        for field in fields(held):
            yield from values(getattr(held, field.name))
    elif isinstance(held, tuple):
        for part in held:
            yield from values(part)
    else:
        yield held


def tensors(batch: PackedBatch) -> list[torch.Tensor]:
    return [value for value in values(batch) if isinstance(value, torch.Tensor)]


@pytest.fixture
def batch() -> PackedBatch:
    """Clips at three speeds, with masks."""
    _, tokenizer = build()
    clips = [
        replace(clip, speed=(0.9, 1.0, 1.1)[number % 3], mask_seed=number)
        for number, clip in enumerate(examples(tokenizer))
    ]
    return pack(clips, PromptTokens.of(tokenizer), EncoderGeometry(), Augmentation())


def crossed(batch: PackedBatch) -> PackedBatch:
    return pickle.loads(pickle.dumps(batch))


@pytest.mark.parametrize(
    "move", [crossed, lambda batch: crossed(crossed(batch)), lambda batch: crossed(batch).to("cpu")]
)
def test_what_comes_out_is_what_went_in(batch, move):
    for before, after in zip(values(batch), values(move(batch)), strict=True):
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype and before.shape == after.shape and before.equal(after)
            assert after.is_contiguous() and after.data_ptr() % 64 == 0
        else:
            assert before == after


def test_it_crosses_as_one_tensor_and_trains_as_many(batch):
    assert len(tensors(batch)) == 29
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(crossed(batch))}) == 1
    there = tensors(crossed(batch).to("cpu"))
    assert len({tensor.untyped_storage().data_ptr() for tensor in there}) == 29
    assert not any(tensor.storage_offset() for tensor in there), "compiled code would be made anew for each batch"


def test_what_was_replaced_does_not_come_back(batch):
    there = crossed(batch)
    changed = replace(there, labels_L=there.labels_L + 1)
    again = crossed(changed)
    assert again.labels_L.equal(batch.labels_L + 1) and again.input_ids_T.equal(batch.input_ids_T)
