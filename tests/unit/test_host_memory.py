"""The copy a checkpoint is written from: equal, untouched by later steps, in the same memory each time."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from hebrew_asr.checkpoints.store import CheckpointStore, find_checkpoints
from hebrew_asr.engine.host_memory import HostMemory
from hebrew_asr.engine.optimizer_state import KINDS, PartitionState


def state(*sizes: int) -> list[PartitionState]:
    """Partitions of these sizes."""
    drawn = torch.Generator().manual_seed(0)
    return [
        PartitionState(f"group {index}", [], {kind: torch.randn(size, generator=drawn) for kind in KINDS}, float(index))
        for index, size in enumerate(sizes)
    ]


def test_a_copy_is_equal_and_stays_so():
    source = state(5, 1, 300)
    copied = HostMemory().copy(source)
    kept = [{kind: tensor.clone() for kind, tensor in item.tensors.items()} for item in source]
    for item in source:
        for tensor in item.tensors.values():
            tensor.zero_()
    assert [(item.group, item.step) for item in copied] == [(item.group, item.step) for item in source]
    for item, expected in zip(copied, kept, strict=True):
        assert item.tensors.keys() == expected.keys()
        assert all(torch.equal(item.tensors[kind], tensor) for kind, tensor in expected.items())


def test_the_next_copy_takes_the_same_memory():
    memory, source = HostMemory(), state(5, 7)
    memory.reserve(source)
    first = memory.copy(source)
    source[0].tensors["master"].fill_(3.0)
    second = memory.copy(source)
    assert [t.data_ptr() for t in second[1].tensors.values()] == [t.data_ptr() for t in first[1].tensors.values()]
    assert second[0].tensors["master"].tolist() == [3.0] * 5


def test_a_phase_with_other_groups_gets_memory_of_its_size():
    memory = HostMemory()
    before = memory.copy(state(5))
    kept = before[0].tensors["master"].clone()
    larger = state(5, 9)
    copied = memory.copy(larger)
    assert torch.equal(copied[1].tensors["exp_avg_sq"], larger[1].tensors["exp_avg_sq"])
    assert torch.equal(before[0].tensors["master"], kept), "a checkpoint may still be writing the one before"
    assert memory.copy([]) == []


def test_nothing_is_copied_over_a_checkpoint_that_is_still_being_written(tmp_path, ranks):
    memory, source = HostMemory(), state(5_000_000)
    store = CheckpointStore(tmp_path, ranks, keep_last=9, keep_best=0, background=True)
    complete = []

    def copied() -> list[PartitionState]:
        complete.append([checkpoint.step for checkpoint in find_checkpoints(tmp_path)])
        return memory.copy(source)

    for step in (1, 2, 3):
        source[0].tensors["master"].fill_(step)
        store.save(copied, step, {})
    store.finish()
    assert complete == [[], [1], [1, 2]]
    for checkpoint in find_checkpoints(tmp_path):
        checkpoint.verify()
        stored = load_file(checkpoint.path / "optimizer-rank00000.safetensors")
        assert stored["0.master"].unique().tolist() == [checkpoint.step]
