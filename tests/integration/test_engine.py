"""The engine through the real launcher: equal to plain AdamW, phases that lose nothing, and what a naive flip does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.engine.state import StateReader
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.model.phases import set_phase
from hebrew_asr.profiles import batching
from tests.support import engine_worker
from tests.support.tiny_task import launch, make_task

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STEPS, SWITCH = 6, 3
LOSS_TOLERANCE = 1e-5
"""Absolute, in nats per token: fp32 sums in another order."""
WEIGHT_TOLERANCE = 2e-5
"""Absolute, on fp32 masters after six steps at rates of 1e-3 to 2e-3, where AdamW divides by small moments."""
WORKER = Path(engine_worker.__file__)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    return make_task(tmp_path_factory.mktemp("task"))


def run_engine(task: Path, out: Path, *, ranks: int, port: int, **spec) -> tuple[list[dict], Path]:
    out.mkdir(parents=True)
    spec = {"stage": 2, "bf16": False, "micro": 4, "steps": STEPS, "switch": SWITCH, **spec}
    done = launch(WORKER, [str(task), str(out), json.dumps(spec)], ranks=ranks, port=port)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "log.json").read_text()), out


@pytest.fixture(scope="module")
def two_ranks(task, tmp_path_factory):
    """2 ranks x 2 micro-batches of 2 clips."""
    return run_engine(task, tmp_path_factory.mktemp("two") / "out", ranks=2, port=29611, micro=2)


def masters(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored fp32 master, flat, whichever ranks hold its pieces."""
    reader = StateReader(folder)
    found = {name: reader.read(name, "master", 0, reader.num_elements(name)) for name in reader.parameters()}
    reader.close()
    return found


def plain_adamw(task: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same steps with torch alone: one process, one backward a step, param groups re-made at the switch."""
    recipe = engine_worker.task_recipe(task)
    asr, tokenizer = load_model(recipe.model), load_tokenizer(recipe.model.path)
    plan = batching(engine_worker.profile(2, False, recipe.clips_per_step), recipe, 1)
    clips = read_manifest(task / "data" / "train.jsonl")
    sampler = StepSampler([clip.duration_s for clip in clips], plan, recipe.seed)
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps, module, mel = StepDataset(clips, sampler, recipe, tokenizer, geometry, 0), PackedASR(asr), LogMel()
    settings, losses, optimizer = recipe.optimizer, [], None
    for step in range(STEPS):
        if step in (0, SWITCH):
            groups = set_phase(asr, recipe, recipe.phases[int(step >= SWITCH)])
            made = torch.optim.AdamW(
                [
                    {
                        "params": list(group.parameters.values()),
                        "lr": engine_worker.RATES[group.module_group],
                        "weight_decay": settings.weight_decay if group.decays else 0.0,
                    }
                    for group in groups
                ],
                betas=(settings.beta1, settings.beta2),
                eps=settings.eps,
            )
            if optimizer is not None:
                made.state.update(optimizer.state)
            optimizer = made
        (micro,) = steps[step].micro_batches
        loss = module(micro.packed, mel(micro.packed)) / micro.num_labels
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in asr.parameters() if p.requires_grad], settings.clip_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach().flatten() for name, p in asr.named_parameters() if p.requires_grad}


def assert_same_run(log: list[dict], weights: dict, losses: list[float], expected: dict) -> None:
    assert [entry["loss"] for entry in log] == pytest.approx(losses, abs=LOSS_TOLERANCE)
    assert weights.keys() == expected.keys()
    worst = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
    assert worst <= WEIGHT_TOLERANCE, f"largest difference of a weight: {worst}"


def test_accumulation_and_ranks_change_nothing(task, two_ranks, tmp_path):
    """1 rank x 4 micro-batches, 2 ranks x 2, and plain AdamW on one batch: the same losses and weights."""
    losses, expected = plain_adamw(task)
    log, out = run_engine(task, tmp_path / "one", ranks=1, port=29612, micro=2)
    assert_same_run(log, masters(out / "end"), losses, expected)
    log, out = two_ranks
    assert_same_run(log, masters(out / "end"), losses, expected)


def test_switch_carries_state_bit_for_bit(two_ranks):
    _, out = two_ranks
    before, after = StateReader(out / "before-switch"), StateReader(out / "after-switch")
    assert list(before.parameters())
    for name in before.parameters():
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            size = before.num_elements(name)
            assert torch.equal(before.read(name, kind, 0, size), after.read(name, kind, 0, size)), (name, kind)
    assert {group: step for group, step in after.steps.items() if group in before.steps} == before.steps
    assert set(before.steps.values()) == {float(SWITCH)}
    joined = set(after.parameters()) - set(before.parameters())
    assert joined
    assert all("audio_tower.layers" in name for name in joined)
    assert {step for group, step in after.steps.items() if group.startswith("audio_top")} == {0.0}
    for name in joined:
        assert not after.read(name, "exp_avg", 0, after.num_elements(name)).any()


def test_audio_masters_stay_then_move(task, two_ranks):
    """What the naive flip gets wrong: before the switch bit-equal to the base model, after it moved."""
    log, out = two_ranks
    base = dict(load_model(engine_worker.task_recipe(task).model).named_parameters())
    at_switch, end = masters(out / "after-switch"), masters(out / "end")
    audio = [name for name in end if "audio_tower.layers" in name]
    assert audio
    for name in audio:
        assert torch.equal(at_switch[name], base[name].detach().flatten()), f"{name} moved while frozen"
        assert not torch.equal(end[name], at_switch[name]), f"{name} did not train after the switch"
    proofs = [entry["proof"] for entry in log]
    assert [index for index, proof in enumerate(proofs) if proof] == [0, SWITCH]
    assert all(proof["moved"] == proof["trainable"] for proof in proofs if proof)
    assert proofs[SWITCH]["trainable"] > proofs[0]["trainable"]


@pytest.mark.parametrize(("stage", "bf16"), [(1, False), (3, False), (1, True), (2, True), (3, True)])
def test_other_stages_agree(task, two_ranks, tmp_path, stage, bf16):
    """Swapping the ZeRO stage is swapping the JSON; bf16 differs by its rounding (tolerance 0.05 nats)."""
    log, out = run_engine(task, tmp_path / "out", ranks=2, port=29613 + stage + 5 * bf16, stage=stage, bf16=bf16)
    tolerance = 0.05 if bf16 else LOSS_TOLERANCE
    assert [entry["loss"] for entry in log] == pytest.approx([e["loss"] for e in two_ranks[0]], abs=tolerance)
    before, after = masters(out / "before-switch"), masters(out / "after-switch")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(log[step]["proof"]["moved"] == log[step]["proof"]["trainable"] for step in (0, SWITCH))
