"""Learning is unchanged: packed and compiled, the losses of a training are those of the native forward, clip by clip.

Some steps of what ``tests/benchmarks/trajectory.py`` does with 200, over the change of phase.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.trajectory import Task, allowed, native, packed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
STEPS = 10


def test_losses_are_those_of_the_native_forward(tmp_path):
    task = Task(tmp_path, clips=12, changes=["clips_per_step=4"], layers=1)
    assert task.schedule.phase_starts == [0, 6]
    torch._dynamo.reset()
    reference, control = task.losses(packed(), STEPS), task.losses(packed(reverse=True), STEPS)
    # Without kernels of its own, which take minutes to build on a CPU: the parts, their shapes and phases are the same.
    compiled = task.losses(packed(backend="eager"), STEPS)
    expected = task.losses(native, STEPS)
    assert expected[-1] < expected[0] - 1
    noise = [abs(a - b) for a, b in zip(reference, control, strict=True)]
    for found in (reference, compiled):
        assert not allowed([abs(a - b) for a, b in zip(found, expected, strict=True)], noise)
