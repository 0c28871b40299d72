"""A run that is long enough to be disturbed, again and again, and what it must then still end like."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from hebrew_asr.checkpoints.store import find_checkpoints
from tests.support.tiny_task import events, without_times

LONG = (
    "phases.0.epochs=4",
    "phases.1.epochs=16",
    "data.workers=1",
    "checkpoints.every_steps=2",
    "evaluation.full_each_epoch=false",
    "evaluation.every_steps=30",
    "evaluation.sample_clips=8",
    "evaluation.batch_clips=1",
)
"""Changes of the tiny task's recipe."""
SWITCH, STEPS = 12, 60
"""20 clips, 8 per step: 3 steps per epoch, and the audio layers join after step 12. Enough steps for ten disturbances,
however many a fast machine takes before each is noticed."""


def ends_like(run: Path, whole: Path) -> None:
    """All records of training and evaluation, and the weights, bit for bit; nothing half-written is left."""
    for kind in ("train", "eval"):
        assert without_times(events(run, kind)) == without_times(events(whole, kind))
    expected = load_file(whole / "final" / "model.safetensors")
    found = load_file(run / "final" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not list((run / "checkpoints").glob(".*"))


def saved_step(run: Path) -> int:
    """Of the newest complete checkpoint, every one of which is whole; or -1."""
    found = find_checkpoints(run / "checkpoints")
    for checkpoint in found:
        checkpoint.verify()
    return found[-1].step if found else -1
