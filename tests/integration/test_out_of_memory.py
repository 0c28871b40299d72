"""Device memory runs out in a step: the step is run again in smaller micro-batches, and what is learned is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hebrew_asr.checkpoints.store import find_checkpoints
from tests.support.tiny_task import BF16, NO_EVALUATION, events, free_port, train_arguments, write_profile

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

CHANGES = ("max_steps=9", *NO_EVALUATION)
"""20 clips, 8 a step; the audio layers join after step 6."""
LOSS_TOLERANCE = 1e-4
"""Absolute, in nats per token, and of weights in the mean: fp32 sums in another order, over 9 steps of AdamW."""
BF16_LOSS_TOLERANCE = 0.05
"""Absolute, in nats per token: bf16 weights and activations."""


def arguments_of(
    task: Path, run: Path, stage: int, micro: int, *changes: str, resume: str = "never", **keys: object
) -> list[str]:
    keys |= {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage}}
    profile = write_profile(run.with_suffix(f".{stage}.json"), **keys)
    return train_arguments(task, run, *CHANGES, *changes, ds=profile, resume=resume)


@pytest.fixture(scope="module")
def whole(task, warm, tmp_path_factory) -> Path:
    """With memory enough."""
    run = tmp_path_factory.mktemp("whole") / "run"
    output = run.with_suffix(".log")
    codes = warm.run(arguments_of(task, run, 2, 8), ranks=1, port=free_port(), output=output)
    assert codes == [0], output.read_text()
    return run


def learned_as(run: Path, whole: Path) -> None:
    ours, theirs = events(run, "train"), events(whole, "train")
    for key in ("step", "clips", "audio_s", "tokens", "phase"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=LOSS_TOLERANCE)
    weights, expected = (load_file(folder / "final" / "model.safetensors") for folder in (run, whole))
    differences = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert float(differences.mean()) < 1e-7
    assert float(differences.max()) < 2e-4, "no weight is off by as much as one step of AdamW"


@pytest.mark.parametrize(
    ("stage", "part"), [(0, "backward"), (1, "backward"), (2, "backward"), (2, "reduction"), (3, "backward")]
)
def test_one_rank_runs_the_step_again(task, warm, whole, tmp_path, stage, part):
    """Out in the second forward of step 4, with gradients of the first one lying there; in a backward of step 8."""
    run, output = tmp_path / "run", tmp_path / "log"
    shortages = [
        {"ranks": [0], "part": "forward", "after": 7, "fits": 3},
        {"ranks": [0], "part": part, "after": 24, "fits": 1},
    ]
    codes = warm.run(arguments_of(task, run, stage, 4), ranks=1, port=free_port(), output=output, shortages=shortages)
    assert codes == [0], output.read_text()
    learned_as(run, whole)
    faults = events(run, "fault")
    assert [(row["kind"], row["part"], row["max_micro_batch"]) for row in faults] == [
        ("out-of-memory", "forward", 2),
        ("out-of-memory", "backward", 1),
    ]
    assert faults[0]["step"] == 4 and faults[1]["step"] > 6
    told = [line for line in output.read_text().splitlines() if "ran out of device memory" in line]
    assert len(told) == 2
    assert "step 4: rank 0 ran out of device memory in forward; from here on 8 clips per step = " in told[0]


@pytest.mark.parametrize(("stage", "part"), [(1, "backward"), (2, "forward")])
def test_two_ranks_agree_and_a_resume_remembers(task, warm, whole, tmp_path, stage, part):
    """One of them runs out, in the first step of the run; both run it again. A resumed run stays as careful."""
    run, output = tmp_path / "run", tmp_path / "log"
    shortages = [{"ranks": [1], "part": part, "after": 0, "fits": 2}]
    options = {"ranks": 2, "output": output, "shortages": shortages}
    codes = warm.run(arguments_of(task, run, stage, 64, "max_steps=4"), port=free_port(), **options)
    assert codes == [0, 0], output.read_text()
    assert [(row["step"], row["ranks"], row["max_micro_batch"]) for row in events(run, "fault")] == [(1, [1], 2)]
    codes = warm.run(arguments_of(task, run, stage, 64, resume="auto"), port=free_port(), **options)
    assert codes == [0, 0], output.read_text()
    assert len(events(run, "fault")) == 1, "the resumed run ran out again"
    learned_as(run, whole)


@pytest.mark.parametrize("part", ["backward", "reduction"])
def test_two_ranks_agree_under_zero2_in_bf16(task, warm, whole, tmp_path, part):
    """It reduces when both ranks are through with backward. The shortage is in a second micro-batch."""
    run, output = tmp_path / "run", tmp_path / "log"
    shortages = [{"ranks": [1], "part": part, "after": 3, "fits": 1}]
    arguments = arguments_of(task, run, 2, 2, "max_steps=4", **BF16)
    codes = warm.run(arguments, ranks=2, port=free_port(), output=output, shortages=shortages)
    assert codes == [0, 0], output.read_text()
    faults = [(row["step"], row["part"], row["ranks"], row["max_micro_batch"]) for row in events(run, "fault")]
    assert faults == [(2, "backward", [1], 1)]
    losses = [[row["loss"] for row in events(folder, "train")][:4] for folder in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=BF16_LOSS_TOLERANCE)


@pytest.mark.parametrize(("stage", "part"), [(2, "backward"), (3, "forward")])
def test_where_ranks_cannot_agree_the_job_ends_and_a_resume_goes_on(task, warm, whole, tmp_path, stage, part):
    """The other rank waits in a collective: no hang, an error that says what to do, and the limit kept for a resume."""
    run, output = tmp_path / "run", tmp_path / "log"
    shortages = [{"ranks": [1], "part": part, "after": 4, "fits": 2}]
    options = {"ranks": 2, "output": output, "shortages": shortages}
    saving = "checkpoints.every_steps=2"
    codes = warm.run(arguments_of(task, run, stage, 64, saving), port=free_port(), **options)
    text = output.read_text()
    assert codes[1] == 75 and codes[0] != 0, text
    assert f"step 5: rank 1 ran out of device memory in {part}, where the other ranks cannot follow" in text
    assert "go on with --resume auto, which takes at most 2 clips at a time" in text
    assert find_checkpoints(run / "checkpoints")[-1].step == 4
    codes = warm.run(arguments_of(task, run, stage, 64, saving, resume="auto"), port=free_port(), **options)
    assert codes == [0, 0], output.read_text()
    assert [row["max_micro_batch"] for row in events(run, "fault")] == [2]
    learned_as(run, whole)


def test_a_single_clip_that_does_not_fit_is_told_once_and_costs_no_step(task, warm, tmp_path):
    """In the third step, of four micro-batches on each rank."""
    run, output = tmp_path / "run", tmp_path / "log"
    shortages = [{"ranks": [1], "part": "forward", "after": 8, "fits": 0}]
    codes = warm.run(arguments_of(task, run, 2, 1), ranks=2, port=free_port(), output=output, shortages=shortages)
    assert codes == [6, 6]
    (told,) = (line for line in output.read_text().splitlines() if "error" in line)
    assert told.startswith("error: step 3: rank 1 ran out of device memory in forward")
    assert "a micro-batch is one clip already (CUDA out of memory. Tried to allocate 2.00 GiB.)" in told
    assert "stopped after step 2, state saved" in told and find_checkpoints(run / "checkpoints")[-1].step == 2
    assert json.loads((run / "crash" / "rank0" / "batch.json").read_text())["step"] == 3
