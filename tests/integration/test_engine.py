"""The engine on real ranks: equal to plain AdamW on every ZeRO stage, phases that lose nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.config.batching import derive_batching
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.engine.optimizer_state import KINDS, StateReader
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.phases import set_phase
from hebrew_asr.passes.packed import PackedASR
from tests.support import engine_worker
from tests.support.tiny_task import free_port
from tests.support.warm import WarmStart

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

PHASES = [0, 0, 1, 1]
SWITCH = 2
LOSS_TOLERANCE = 1e-5
"""Absolute, in nats per token: fp32 sums in another order."""
BF16_LOSS_TOLERANCE = 0.05
"""Absolute, in nats per token: bf16 weights and activations."""
TOLERANCE, FEW, STEP_SHARE = 5e-6, 1 / 2000, 5e-4
"""Absolute, on fp32 masters, which move by some 1e-3 a step. AdamW's first step moves a weight by g / (|g| + 1e-8) of
the rate: where that gradient is no larger than eps (3e-9, in the elements seen), its fp32 rounding becomes a share of a
step, another one on each processor. So all but a few elements are within ``TOLERANCE``, and none is off by more than
``STEP_SHARE``."""
MEAN_TOLERANCE = 1e-7
"""Seen: up to 3.1e-8. Weight decay left out shows as 1.5e-6."""
STAGES = [(stage, bf16) for bf16 in (False, True) for stage in range(4)]
COMPILED = ["1, compiled", "2, compiled"]
POISONED = ["0, fp32", "0", "1", "2", "3", *COMPILED]
"""ZeRO stages of runs in which a step's gradients are NaN."""


SECTIONS = {
    2: {"reduce_bucket_size": 5000, "overlap_comm": True},
    3: {"stage3_prefetch_bucket_size": 5_000, "stage3_max_live_parameters": 15_000},
}
"""Of ZeRO-2 many buckets, two at a time; of ZeRO-3 parts by themselves and together, of which some stay for backward.
"""


def name_of(stage: int, bf16: bool, offload: bool = False) -> str:
    return f"zero{stage}-{'bf16' if bf16 else 'fp32'}{'-offload' if offload else ''}"


CELLS = [
    *(name_of(stage, bf16) for stage, bf16 in STAGES),
    *(name_of(stage, False, True) for stage in (2, 3)),
    *(f"nan-{name}" for name in POISONED),
]


def work(warm: WarmStart, task: Path, cells: list[dict], ranks: int, port: int) -> None:
    """Run the cells one after the other on the same ranks."""
    done = warm.finish([str(task), json.dumps(cells)], ranks=ranks, port=port, program=engine_worker.__name__)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def run_cells(warm: WarmStart, task: Path, folder: Path, ranks: int, port: int) -> Path:
    """Every stage and precision in one start: 4 micro-batches of 2 clips on one rank, 2 on each of two.

    Stage 0 in bf16 has no fp32 accumulation in DeepSpeed, so there each rank has a single micro-batch.
    """

    def micro(stage: int, bf16: bool) -> int:
        return 8 if bf16 and stage == 0 else 2

    cells = [
        {
            "out": str(folder / name_of(stage, bf16)),
            "stage": stage,
            "bf16": bf16,
            "micro": micro(stage, bf16),
            "phases": PHASES,
            "zero": SECTIONS.get(stage, {}),
        }
        for stage, bf16 in STAGES
    ]
    cells += [
        {**common, "out": str(folder / name_of(stage, False, True)), "stage": stage, "offload": True}
        for stage in (2, 3)
        for common in ({"bf16": False, "micro": 2, "phases": PHASES},)
    ]
    cells += [
        {
            "bf16": not name.endswith("fp32"),
            "micro": 8 if name[0] == "0" else 2,
            "phases": [0, 0, 0],
            "stage": int(name[0]),
            "compiled": name in COMPILED,
            "poisoned": 1,
            "out": str(folder / f"nan-{name}"),
        }
        for name in POISONED
    ]
    switching = {"bf16": False, "micro": 4, "stage": 2, "phases": [0, 1, 2, 1, 2, 1], "count_alive": True}
    cells.append({**switching, "out": str(folder / "switching")})
    work(warm, task, cells, ranks, port)
    return folder


@pytest.fixture(scope="module")
def one_rank(task, warm, tmp_path_factory) -> Path:
    return run_cells(warm, task, tmp_path_factory.mktemp("one"), 1, free_port())


@pytest.fixture(scope="module")
def two_ranks(task, warm, tmp_path_factory) -> Path:
    return run_cells(warm, task, tmp_path_factory.mktemp("two"), 2, free_port())


@pytest.fixture(params=[1, 2], ids=["1 rank", "2 ranks"])
def cells(request) -> Path:
    return request.getfixturevalue("one_rank" if request.param == 1 else "two_ranks")


def log_of(cell: Path) -> list[dict]:
    return json.loads((cell / "log.json").read_text())


def state_of(folder: Path, *kinds: str) -> dict[tuple[str, str], torch.Tensor]:
    """Stored tensors by (parameter, kind), flat, whichever ranks hold their pieces."""
    reader = StateReader(folder)
    found = {
        (name, kind): reader.read(name, kind, 0, reader.num_elements(name))
        for name in reader.parameters()
        for kind in kinds or KINDS
    }
    reader.close()
    return found


@pytest.fixture(scope="module")
def plain_adamw(task) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The same steps with torch alone: one process, one backward a step, param groups re-made at the switch."""
    recipe = engine_worker.task_recipe(task)
    asr, tokenizer = load_model(recipe.model), load_tokenizer(recipe.model.path)
    batching = derive_batching(engine_worker.profile(2, False, recipe.clips_per_step), recipe, 1)
    clips = read_manifest(task / "data" / "train.jsonl")
    geometry = EncoderGeometry.of(asr.config.audio_config)
    steps, module, mel = StepDataset(clips, batching, recipe, tokenizer, geometry, 0), PackedASR(asr), LogMel()
    absent_V = ~engine_worker.present_tokens(task, asr)
    settings, losses, norms, optimizer = recipe.optimizer, [], [], None
    for step, phase in enumerate(PHASES):
        if step in (0, SWITCH):
            groups = set_phase(asr, recipe, recipe.phases[phase])
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
        asr.lm_head.weight.grad[absent_V] = 0.0
        norm = torch.nn.utils.clip_grad_norm_([p for p in asr.parameters() if p.requires_grad], settings.clip_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, {name: p.detach().flatten() for name, p in asr.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "name",
    [*(name_of(stage, False) for stage in range(4)), *(name_of(stage, False, True) for stage in (2, 3))],
)
def test_every_fp32_stage_is_plain_adamw(cells, plain_adamw, name):
    """1 rank x 4 micro-batches, 2 ranks x 2, any stage, offloaded or not: the losses and weights of torch alone."""
    losses, norms, expected = plain_adamw
    assert [entry["loss"] for entry in log_of(cells / name)] == pytest.approx(losses, abs=LOSS_TOLERANCE)
    assert [entry["grad_norm"] for entry in log_of(cells / name)] == pytest.approx(norms, rel=1e-4)
    weights = {parameter: tensor for (parameter, _), tensor in state_of(cells / name / "end", "master").items()}
    assert weights.keys() == expected.keys()
    difference = torch.cat([(weights[parameter] - expected[parameter]).abs() for parameter in expected])
    assert float(difference.mean()) <= MEAN_TOLERANCE
    assert int((difference > TOLERANCE).sum()) <= FEW * len(difference)
    assert float(difference.max()) <= STEP_SHARE


@pytest.mark.parametrize("stage", range(4))
def test_bf16_follows_fp32(cells, plain_adamw, stage):
    losses = [entry["loss"] for entry in log_of(cells / name_of(stage, True))]
    assert losses == pytest.approx(plain_adamw[0], abs=BF16_LOSS_TOLERANCE)


@pytest.mark.parametrize(("stage", "bf16"), STAGES, ids=lambda value: str(value))
def test_switch_carries_state_bit_for_bit(cells, stage, bf16):
    cell = cells / name_of(stage, bf16)
    before, after = state_of(cell / f"{SWITCH}-before"), state_of(cell / f"{SWITCH}-after")
    assert before
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    old, new = StateReader(cell / f"{SWITCH}-before"), StateReader(cell / f"{SWITCH}-after")
    assert set(old.steps.values()) == {float(SWITCH)}
    assert {group: step for group, step in new.steps.items() if group in old.steps} == old.steps
    assert {step for group, step in new.steps.items() if group.startswith("audio_top")} == {0.0}
    joined = after.keys() - before.keys()
    assert {name for name, _ in joined} == {name for name in new.parameters() if "audio_tower.layers" in name}
    assert not any(after[key].any() for key in joined if key[1] != "master"), "new moments start at zero"


@pytest.mark.parametrize(("stage", "bf16"), STAGES, ids=lambda value: str(value))
def test_audio_stays_then_trains(task, cells, stage, bf16):
    """What a naive flip of requires_grad gets wrong: bit-equal to the base model before the switch, moved after."""
    cell = cells / name_of(stage, bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    base = dict(load_model(engine_worker.task_recipe(task).model, dtype=dtype).named_parameters())
    at_switch, end = state_of(cell / f"{SWITCH}-after", "master"), state_of(cell / "end", "master")
    audio = [key for key in end if "audio_tower.layers" in key[0]]
    assert audio
    for key in audio:
        assert torch.equal(at_switch[key], base[key[0]].detach().flatten().float()), f"{key} moved while frozen"
        assert not torch.equal(end[key], at_switch[key]), f"{key} did not train after the switch"
    proofs = [entry["proof"] for entry in log_of(cell)]
    assert [index for index, proof in enumerate(proofs) if proof] == [0, SWITCH]
    assert all(0.5 * proof["trainable"] < proof["moved"] for proof in proofs if proof)
    assert proofs[SWITCH]["trainable"] > proofs[0]["trainable"]


@pytest.mark.parametrize("name", CELLS)
def test_rows_of_absent_tokens_stay_and_all_others_train(task, cells, name):
    """Bit for bit, after steps in both phases, several micro-batches and weight decay: masters and moments."""
    recipe = engine_worker.task_recipe(task)
    assert recipe.optimizer.absent_tokens == "frozen" and recipe.optimizer.weight_decay > 0
    asr = load_model(recipe.model, dtype=torch.float32 if "fp32" in name else torch.bfloat16)
    present_V = engine_worker.present_tokens(task, asr)
    assert 20 < int(present_V.sum()) < len(present_V) - 20
    weight = asr.lm_head.weight.detach()
    (parameter,) = [key for key, held in asr.named_parameters() if held is asr.lm_head.weight]
    state = state_of(cells / name / "end")
    master, *moments = (state[parameter, kind].view_as(weight) for kind in KINDS)
    assert torch.equal(master[~present_V], weight[~present_V].float())
    assert (master != weight).any(dim=1)[present_V].all()
    assert not any(moment[~present_V].any() for moment in moments)
    assert all(moment[present_V].any(dim=1).all() for moment in moments)


@pytest.mark.parametrize("name", POISONED)
def test_a_step_of_nan_changes_nothing(cells, name):
    """Masters, moments and step counts stay bit for bit, where the device alone finds out as well."""
    cell = cells / f"nan-{name}"
    before, after = state_of(cell / "1-before"), state_of(cell / "1-after")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert StateReader(cell / "1-after").steps == StateReader(cell / "1-before").steps
    log = log_of(cell)
    assert [entry["applied"] for entry in log] == [True, False, True]
    assert math.isfinite(log[2]["loss"]) and log[2]["loss"] < log[0]["loss"]
    assert set(StateReader(cell / "end").steps.values()) == {2.0}


@pytest.mark.parametrize("name", ["2", *COMPILED])
def test_flat_stages_and_the_compiled_adamw_are_one(cells, name):
    """Two steps around the one of NaN, in bf16: ZeRO-1 with torch's AdamW, and the others."""
    plain, compiled = (state_of(cells / f"nan-{each}" / "end", "master") for each in ("1", name))
    difference = torch.cat([(plain[key] - compiled[key]).abs() for key in plain])
    assert plain.keys() == compiled.keys()
    assert float(difference.mean()) <= MEAN_TOLERANCE
    assert int((difference > TOLERANCE).sum()) <= FEW * len(difference)
    print(f"mean {float(difference.mean()):.1e}, max {float(difference.max()):.1e}")


def test_switches_leave_nothing_behind(cells):
    """After five changes of phase no more is alive than after the first one into the same phase."""
    log = log_of(cells / "switching")
    first, last = log[1], log[5]
    assert last["hooks"] == first["hooks"]
    assert last["tensor_bytes"] <= 1.02 * first["tensor_bytes"]


def test_once_a_phase_is_proved_the_garbage_collector_has_little_to_look_through(cells):
    """What was imported and built is hundreds of thousands of objects, and all ranks wait for one that collects."""
    assert max(step["collectable"] for step in log_of(cells / "switching")) < 20_000


ELSEWHERE = [(1, 3), (2, 3), (3, 3), (0, 1), (2, 1)]
"""ZeRO stages and ranks that read what two ranks wrote under ZeRO-2."""


@pytest.fixture(scope="module")
def elsewhere(task, warm, two_ranks, tmp_path_factory) -> Path:
    """State of two ranks after the switch, read on other ranks and stages and written again.

    One group has another name where it was written: state is found by its parameter.
    """
    folder, written = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("written")
    for path in (two_ranks / name_of(2, False) / f"{SWITCH}-after").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            layout = file.metadata()["layout"]
        assert "llm_top.no_decay" in layout
        save_file(load_file(path), written / path.name, {"layout": layout.replace("llm_top.no_decay", "llm_top.norms")})
    common = {"bf16": False, "micro": 8, "phases": [1], "first": SWITCH, "resume": str(written)}
    for ranks, port in ((1, free_port()), (3, free_port())):
        cells = [
            {**common, "stage": stage, "out": str(folder / f"{stage}-{count}")}
            for stage, count in ELSEWHERE
            if count == ranks
        ]
        work(warm, task, cells, ranks, port)
    return folder


@pytest.mark.parametrize(("stage", "ranks"), ELSEWHERE)
def test_state_is_bit_equal_on_other_ranks_and_stages(two_ranks, elsewhere, stage, ranks):
    """Wherever its pieces lie; the groups that have just joined are at step 0, the others at 2."""
    written, read = two_ranks / name_of(2, False) / f"{SWITCH}-after", elsewhere / f"{stage}-{ranks}" / "start"
    before, after = state_of(written), state_of(read)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert StateReader(read).steps == StateReader(written).steps
