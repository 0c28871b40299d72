"""A run that was rehearsed learns what one learns that was not, to the bit; and what a rehearsal finds, it has at once.

``test_kill_matrix.py`` stops one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_task import (
    BF16,
    NO_EVALUATION,
    events,
    final_weights,
    free_port,
    make_task,
    train_arguments,
    without_times,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
SHORT = (*NO_EVALUATION, "phases.0.epochs=1", "phases.1.epochs=1", "checkpoints.every_steps=100")
SAID = "rehearsed phases B and A on the longest batch, decoded the longest 1 clip, copied "


def train(task: Path, warm, run: Path, *changes: str, profile: Path, **options: object) -> str:
    """What a run of two ranks said."""
    output = run.with_suffix(".log")
    arguments = train_arguments(task, run, *SHORT, *changes, ds=profile)
    codes = warm.run(arguments, ranks=2, port=free_port(), output=output, **options)
    assert codes == [0, 0], output.read_text()
    return output.read_text()


@pytest.mark.parametrize("stage", [2, 3])
def test_it_leaves_no_trace(task, warm, tmp_path, stage):
    profile = write_profile(tmp_path / "profile.json", zero_optimization={"stage": stage}, **BF16)
    rehearsed, plain = tmp_path / "rehearsed", tmp_path / "plain"
    said = train(task, warm, rehearsed, "rehearse=true", profile=profile)
    assert SAID in said
    states = sorted(rehearsed.glob("checkpoints/*/optimizer-rank*"))
    (copied,) = re.findall(r"copied (\S+) MiB of state", said)
    assert float(copied) * 2**20 == pytest.approx(sum(path.stat().st_size for path in states), rel=0.1)
    assert SAID not in train(task, warm, plain, profile=profile), "a CPU compiles nothing, and has no memory of its own"
    for kind in ("train", "phase", "eval"):
        assert without_times(events(rehearsed, kind)) == without_times(events(plain, kind)) != []
    expected = final_weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in final_weights(rehearsed).items())
    states = sorted(plain.glob("checkpoints/*/optimizer-rank*"))
    assert len(states) == 2
    for path in states:
        expected, found = load_file(path), load_file(rehearsed / path.relative_to(plain))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_batch_that_does_not_fit_in_phase_a_is_halved_before_the_first_step(task, warm, tmp_path):
    """Of three steps of a phase, two passes each on a rank, the second phase's first one."""
    profile = write_profile(tmp_path / "profile.json", train_micro_batch_size_per_gpu=2)
    workers = "data.workers=1"  # which load steps of the size that does not fit
    run, shortages = tmp_path / "run", [{"ranks": [1], "part": "forward", "after": 6, "fits": 1}]
    said = train(task, warm, run, "rehearse=true", workers, profile=profile, shortages=shortages)
    (fault,) = events(run, "fault")
    assert (fault["step"], fault["max_micro_batch"], fault["ranks"]) == (1, 1, [1])
    assert fault["part"] == "forward, rehearsing phase A" and said.index(fault["part"]) < said.index(SAID)


def test_gradients_that_are_not_finite_are_the_runs_to_report(warm, tmp_path):
    """A phase that could not be proved is not called rehearsed."""
    task, run, output = make_task(tmp_path / "task"), tmp_path / "run", tmp_path / "log"
    path = task / "base" / "model.safetensors"
    weights = load_file(path)
    next(tensor for name, tensor in weights.items() if name.endswith("norm.weight")).fill_(3e38)
    save_file(weights, path, metadata={"format": "pt"})
    codes = warm.run(train_arguments(task, run, *SHORT, "rehearse=true"), ranks=2, port=free_port(), output=output)
    said = output.read_text()
    assert codes == [6, 6] and "Traceback" not in said
    assert "not rehearsed: gradients of phase B were NaN or infinite in 3 steps" in said
    assert said.index("not rehearsed") < said.index("step 0: Strategy B")


def test_other_weights_that_changed_on_one_rank_are_named_by_all(warm, tmp_path):
    output = tmp_path / "log"
    codes = warm.run([], ranks=2, port=free_port(), output=output, program="tests.support.kept_worker")
    assert codes == [0, 0], output.read_text()


def test_clips_that_cannot_be_read_are_the_runs_to_report(warm, tmp_path):
    """Not a rehearsal's, which does without."""
    task, run, output = make_task(tmp_path / "task"), tmp_path / "run", tmp_path / "log"
    for path in task.glob("data/clips/train*"):
        path.write_bytes(b"no sound")
    arguments = train_arguments(task, run, *SHORT, "rehearse=true")
    codes = warm.run(arguments, ranks=2, port=free_port(), output=output)
    said = output.read_text()
    assert codes == [3, 3] and "not rehearsed: no clip of step " in said and "Traceback" not in said
    assert "step 0: Strategy B" in said, "it began"
    assert "no clip of step 0 can be decoded" in said
