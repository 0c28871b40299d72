"""A run goes on where it was not begun: on other rank counts and ZeRO stages, with the same clips in the same order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hebrew_asr.checkpoints.store import find_checkpoints
from hebrew_asr.engine.optimizer_state import StateReader
from tests.support.tiny_task import (
    BF16,
    NO_EVALUATION,
    events,
    free_port,
    lines_but_the_first,
    train_arguments,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

# 20 clips, 8 a step: 3 steps an epoch, 15 in all; the audio layers join after step 6.
LOSS_TOLERANCE = 1e-4
"""Absolute, in nats per token: fp32 sums in another order, over 15 steps of AdamW."""
BF16_LOSS_TOLERANCE = 0.05
"""Absolute, in nats per token: bf16 weights and activations, in batches of other sizes."""
MEAN_TOLERANCE, MAX_TOLERANCE = 1e-7, 2e-4
"""Absolute, of final weights. In single elements a gradient as small as AdamW's eps shows its rounding as a share of a
step, and the learning rate is 2e-4 at most."""


def arguments_of(task: Path, run: Path, stage: int, *changes: str, **keys: object) -> list[str]:
    profile = write_profile(run.with_suffix(f".{stage}.json"), zero_optimization={"stage": stage}, **keys)
    return train_arguments(task, run, *NO_EVALUATION, *changes, ds=profile, resume="auto")


@pytest.fixture(scope="module")
def whole(task, warm, tmp_path_factory) -> Path:
    """All of it on two ranks under ZeRO-2."""
    run = tmp_path_factory.mktemp("whole") / "run"
    output = run.with_suffix(".log")
    assert warm.run(arguments_of(task, run, 2), ranks=2, port=free_port(), output=output) == [0, 0], output.read_text()
    return run


@pytest.mark.parametrize(
    "parts",
    [
        [(2, 2, 4), (2, 3, 8), (2, 1, 10), (2, 4, 15)],
        [(1, 1, 5), (1, 4, 7), (3, 3, 15)],
        [(1, 2, 2), (2, 2, 5), (1, 2, 7), (2, 2, 8), (3, 2, 10), (2, 2, 15)],
        [(0, 2, 4), (3, 2, 7), (0, 1, 15)],
    ],
    ids=["ranks 2 3 1 4", "ranks 1 4 3, ZeRO-1 and 3", "ZeRO 1 2 1 2 3 2", "ZeRO 0 3 0"],
)
def test_the_run_is_the_same_anywhere(task, warm, whole, tmp_path, parts):
    """Parts as (ZeRO stage, ranks, steps done at its end): mid-epoch, before the switch and after it."""
    run, output = tmp_path / "run", tmp_path / "log"
    for stage, ranks, stop in parts:
        arguments = arguments_of(task, run, stage, f"max_steps={stop}")
        codes = warm.run(arguments, ranks=ranks, port=free_port(), output=output)
        assert codes == [0] * ranks, output.read_text()
        facts = json.loads((run / "run.json").read_text())
        assert facts["num_ranks"] == ranks and facts["devices"] == ["cpu"] * ranks
    assert output.read_text().count("resuming from") == len(parts) - 1
    ours, theirs = events(run, "train"), events(whole, "train")
    for key in ("step", "clips", "audio_s", "tokens", "phase", "lr"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=LOSS_TOLERANCE)
    weights, expected = (load_file(folder / "final" / "model.safetensors") for folder in (run, whole))
    differences = torch.cat([(weights[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert float(differences.mean()) < MEAN_TOLERANCE
    assert float(differences.max()) < MAX_TOLERANCE


def test_flat_stages_go_on_from_each_other(task, warm, tmp_path):
    """In bf16, where ZeRO-1 to 3 are flat: a run on one rank, and one that goes over other numbers of ranks."""
    final = []
    parts_of_one = [(2, 2, 4), (1, 1, 6), (3, 3, 8), (2, 3, 9), (3, 2, 11), (3, 1, 12)]
    for name, parts in (("whole", [(1, 1, 12)]), ("parts", parts_of_one)):
        run, output = tmp_path / name, tmp_path / f"{name}.log"
        for stage, ranks, stop in parts:
            arguments = arguments_of(task, run, stage, f"max_steps={stop}", **BF16)
            assert warm.run(arguments, ranks=ranks, port=free_port(), output=output) == [0] * ranks, output.read_text()
        reader = StateReader(find_checkpoints(run / "checkpoints")[-1].path)
        names = sorted(reader.parameters())
        moments = torch.cat([reader.read(each, "exp_avg_sq", 0, reader.num_elements(each)) for each in names])
        final.append((reader.steps, moments, [row["loss"] for row in events(run, "train")]))
    (steps, moments, losses), (expected_steps, expected, expected_losses) = final
    assert steps == expected_steps and set(steps.values()) == {6.0, 12.0}
    assert losses == pytest.approx(expected_losses, abs=BF16_LOSS_TOLERANCE)
    apart = float((moments - expected).norm() / expected.norm())
    print(f"second moments apart by {apart:.1e} of their norm")
    assert apart < 0.05, "as much as bf16 gradients are; lost at one of the stops, they would be apart by most of it"


def test_what_cannot_be_exact_is_refused_by_name(task, warm, whole, tmp_path):
    """Before the ranks meet: nothing but one line of output, and the run directory as it was."""
    run, output = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()  # as of a run that is not finished: nothing of a finished one is resumed
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    manifest = task / "data" / "train.jsonl"
    held = manifest.read_text(encoding="utf-8")

    def refused(arguments: list[str], *told: str) -> None:
        output.unlink(missing_ok=True)
        assert warm.run(arguments, ranks=2, port=free_port(), output=output) == [5, 5], output.read_text()
        lines = lines_but_the_first(output)
        assert len(lines) == 1 and all(part in lines[0] for part in told), lines

    refused(arguments_of(task, run, 2, **BF16), "was trained in fp32 and", "resume with a profile in fp32")
    try:
        manifest.write_text("\n".join(held.splitlines()[1:]), encoding="utf-8")
        refused(arguments_of(task, run, 2), "the training manifest has changed since", "step-000015")
    finally:
        manifest.write_text(held, encoding="utf-8")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
