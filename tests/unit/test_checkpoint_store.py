"""What the store says of a checkpoint is so: on disks that are full, too small or read-only."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch

from hebrew_asr.checkpoints.sealed import ranked_by_wer
from hebrew_asr.checkpoints.store import CheckpointStore, find_checkpoints
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.optimizer_state import KINDS, PartitionState
from tests.support.disks import fill, remount, small_disk

SIZE = 1 << 20
"""Of a state, in bytes, within 0.5 %."""


def state() -> list[PartitionState]:
    return [PartitionState("head.decay", [], {kind: torch.randn(SIZE // 12) for kind in KINDS}, 1.0)]


def store(folder: Path, ranks: Ranks, **changed) -> CheckpointStore:
    options = {"keep_last": 9, "keep_best": 1, "background": True} | changed
    return CheckpointStore(folder / "checkpoints", ranks, **options)


def steps(folder: Path) -> list[int]:
    found = find_checkpoints(folder / "checkpoints")
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.step for checkpoint in found]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "80m") as folder:
        yield folder


@pytest.mark.parametrize("background", [False, True])
def test_a_sealed_one_is_told(tmp_path, ranks, background):
    kept = store(tmp_path, ranks, background=background)
    assert kept.finish() is None and kept.sealed_step is None
    begun = kept.save(state, 5, {})
    assert (begun is None) == background
    assert kept.begun_step == (5 if background else None)
    outcome = kept.finish() if background else begun
    assert (outcome.step, outcome.failure, kept.sealed_step, kept.begun_step) == (5, None, 5, None)
    assert kept.take_outcomes() == [outcome] and kept.take_outcomes() == []
    assert steps(tmp_path) == [5]


def test_a_run_that_is_moved_while_it_is_trained_is_told_once_and_saved_all_the_same(tmp_path, ranks, capsys):
    run = tmp_path / "run"
    run.mkdir()
    kept = store(run, ranks, background=False)
    assert kept.save(state, 1, {}).failure is None
    assert not capsys.readouterr().err
    run.rename(tmp_path / "moved")
    assert [kept.save(state, step, {}).failure for step in (2, 3)] == [None, None]
    assert capsys.readouterr().err.count(f"{run} was moved or removed") == 1
    assert (steps(run), steps(tmp_path / "moved")) == ([2, 3], [1])


def test_a_run_is_let_go_when_it_is_written(tmp_path, ranks):
    kept, found = store(tmp_path, ranks), queue.Queue[list[int]]()
    kept.when_written(lambda: found.put(steps(tmp_path)))
    kept.save(lambda: [state()[0] for _ in range(64)], 1, {})
    kept.when_written(lambda: found.put(steps(tmp_path)))
    assert not steps(tmp_path), "nobody waited"
    assert [found.get(timeout=60), found.get(timeout=60)] == [[], [1]]


def test_one_that_fails_in_the_background_is_told_and_the_next_is_tried(disk, ranks):
    kept = store(disk, ranks)
    kept.save(state, 1, {})
    assert kept.finish().failure is None
    ballast = fill(disk, leave=SIZE // 2)
    kept.save(state, 2, {})
    outcome = kept.finish()
    assert "no room in" in outcome.failure and outcome.is_full
    assert kept.sealed_step == 1
    assert not list((disk / "checkpoints").glob(".*"))
    ballast.unlink()
    kept.save(state, 3, {})
    assert kept.finish().failure is None
    assert kept.sealed_step == 3 and steps(disk) == [1, 3]
    assert [outcome.step for outcome in kept.take_outcomes()] == [1, 2, 3]


def test_the_last_one_may_fill_the_disk(disk, ranks):
    """Less is free than is kept free while training goes on, but enough."""
    kept = store(disk, ranks)
    fill(disk, leave=2 * SIZE)
    assert kept.save(state, 1, {}) is None
    assert kept.finish().is_full
    assert kept.save(state, 2, {}, last=True).failure is None
    assert steps(disk) == [2]


def test_the_last_one_takes_the_place_of_the_oldest_but_not_of_the_best_or_the_newest(disk, ranks, capsys):
    kept = store(disk, ranks)
    for step, wer in ((1, 0.2), (2, 0.3), (3, 0.4), (4, 0.5)):
        kept.save(state, step, {"wer": wer})
    kept.finish()
    fill(disk, leave=SIZE // 2)
    assert kept.save(state, 5, {}, last=True).failure is None
    assert steps(disk) == [1, 3, 4, 5]
    assert "dropping the oldest checkpoint" in capsys.readouterr().err


def test_the_best_and_the_newest_are_never_given_up(disk, ranks):
    kept = store(disk, ranks)
    for step, wer in ((1, 0.2), (2, 0.3)):
        kept.save(state, step, {"wer": wer})
    kept.finish()
    fill(disk, leave=SIZE // 2)
    outcome = kept.save(state, 3, {}, last=True)
    assert outcome.is_full and kept.sealed_step == 2
    assert steps(disk) == [1, 2]


def test_a_read_only_disk_is_told_with_its_reason(disk, ranks):
    kept = store(disk, ranks)
    kept.save(state, 1, {})
    kept.finish()
    remount(disk, "ro")
    outcome = kept.save(state, 2, {}, last=True)
    assert "Read-only file system" in outcome.failure and not outcome.is_full
    assert kept.sealed_step == 1 and steps(disk) == [1]
    remount(disk, "rw")
    assert kept.save(state, 2, {}, last=True).failure is None


def test_room_that_vanishes_during_the_write(disk, ranks):
    """As where others write on the disk too, or a quota ends: the free space that the system states was enough."""

    def filled() -> list[PartitionState]:
        return state()

    kept = store(disk, ranks, keep_best=0)
    for step in (1, 2, 3):
        kept.save(filled, step, {})
    kept.finish()
    remount(disk, f"size={3 * SIZE + SIZE // 2}")
    kept.make_room = lambda *_: None  # what it would say is not so under a quota
    outcome = kept.save(filled, 4, {}, last=True)
    assert outcome.failure is None
    assert steps(disk)[-2:] == [3, 4] and len(steps(disk)) < 4


def test_files_that_may_be_no_more_cost_the_oldest_too(tmp_path, ranks):
    """A disk has room for so many files: it is full with most of its bytes free."""
    with small_disk(tmp_path / "disk", "80m,nr_inodes=10") as disk:
        kept = store(disk, ranks, keep_best=0)
        for step in (1, 2):
            assert kept.save(state, step, {}, last=True).failure is None  # each is a folder and three files
        assert not list(disk.glob("checkpoints/.*"))
        assert kept.save(state, 3, {}, last=True).failure is None
        assert steps(disk) == [2, 3]


def test_what_somebody_keeps_in_a_checkpoint_folder_stays(disk, ranks):
    """Notes beside checkpoints that are rotated out, written again, half-written, or given up for want of room."""
    kept = store(disk, ranks, keep_last=2, keep_best=0, background=False)
    notes = []
    for step in (1, 2, 3, 4):
        kept.save(state, step, {})
        notes.append(disk / "checkpoints" / f"step-{step:06d}" / "notes" / "why.txt")
        notes.append(notes[-1].parents[1] / "optimizer-rank00000.safetensors.bak")
        for file in notes[-2:]:
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"of step {step}")
    assert steps(disk) == [3, 4]
    assert sorted(path.name for path in notes[0].parents[1].iterdir()) == ["notes", notes[1].name]
    half = disk / "checkpoints" / ".tmp-step-000005"
    half.mkdir()
    for name in ("mine.txt", "optimizer-rank00007.safetensors", ".state.json.77.tmp"):
        (half / name).write_bytes(b"half")
    for step in (4, 5):  # a resume that saves the step that it began with, and one that was killed in a write
        assert kept.save(state, step, {}).failure is None
    assert steps(disk) == [4, 5]
    assert not half.exists() or [path.name for path in half.iterdir()] == ["mine.txt"]
    fill(disk, leave=SIZE // 2)
    assert kept.save(state, 6, {}, last=True).failure is None
    assert steps(disk) == [5, 6]
    assert all(file.read_text() == f"of step {1 + index // 2}" for index, file in enumerate(notes))


def test_best_is_the_lowest_wer_of_what_was_measured_alike_and_the_later_of_equals(tmp_path, ranks):
    """As the store keeps them, and as the model of a run is taken from them."""
    kept = store(tmp_path, ranks, keep_last=1, background=False)
    told = [(1, 0.1, "eval"), (2, 0.5, "sample"), (3, 0.3, "sample"), (4, 0.3, "sample"), (5, 0.4, "sample")]
    for step, wer, wer_of in told:
        kept.save(state, step, {"wer": wer, "wer_of": wer_of})
    kept.save(state, 6, {"wer": None})
    assert steps(tmp_path) == [1, 4, 6]
    assert ranked_by_wer(find_checkpoints(tmp_path / "checkpoints"))[-1][0].step == 4
