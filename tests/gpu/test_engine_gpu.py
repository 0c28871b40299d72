"""The engine on CUDA: a step is queued without a wait for the device, whatever its gradients turn out to be, what is
compiled of the optimizer is torch's AdamW, and state is copied to memory that the device can write at full rate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from hebrew_asr.config.profiles import Hardware
from hebrew_asr.engine import dist, zero
from hebrew_asr.engine.host_memory import HostMemory
from hebrew_asr.engine.optimizer_state import KINDS, PartitionState
from hebrew_asr.fallbacks import take_fallbacks
from tests.support import engine_worker, proof_worker
from tests.support.gpu_task import SPEC, no_host_sync
from tests.support.tiny_task import make_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def ranks() -> Iterator[dist.Ranks]:
    """This process alone, once, since DeepSpeed remembers its first group. The environment is put back as it was."""
    environment = dict(os.environ)
    yield dist.start("cuda")
    dist.stop()
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize(("stage", "micro"), [(1, 8), (1, 4), (2, 8), (2, 4)])
def test_a_step_never_waits_for_the_device(tmp_path, ranks, stage, micro):
    task = make_task(tmp_path, spec=SPEC)
    profile = replace(engine_worker.profile(stage, True, micro), hardware=Hardware("cuda"))
    given = engine_worker.set_up(task, ranks, profile)
    engine, before = given.engine, given.asr.lm_head.weight.detach().clone()
    engine.enter_phase(0)
    for step in range(2):
        engine.step(given.micro_batches(step), engine_worker.RATES)
        engine.prove_phase()
    clean, poisoned = given.micro_batches(2), given.micro_batches(3)
    engine_worker.poison(poisoned)
    torch.cuda.synchronize()
    with no_host_sync():
        results = [engine.step(batch, engine_worker.RATES) for batch in (clean, poisoned, clean)]
    figures = [result.figures() for result in results]
    assert [each.applied for each in figures] == [True, False, True]
    assert figures[2].loss < figures[0].loss, "the step of NaN changed nothing, the one before it trained"
    # Rows of tokens that no clip holds stay, all others train.
    moved = (given.asr.lm_head.weight.detach().cpu() != before).any(dim=1)
    assert torch.equal(moved, engine_worker.present_tokens(task, given.asr)), (
        "rows of tokens that no clip holds stay, all others train"
    )
    engine.close()


@pytest.mark.parametrize("stage", [1, 2])
def test_the_compiled_update_is_torchs(tmp_path, ranks, stage):
    """As close as two passes are, whose gradients are summed in any order: 1e-5. The passes are eager both times."""
    task = make_task(tmp_path, spec=SPEC)
    states = []
    for compiled in (False, True):
        profile = replace(engine_worker.profile(stage, True, 8), hardware=Hardware("cuda", compile=compiled))
        given = engine_worker.set_up(task, ranks, profile, passes_compile=False)
        given.engine.enter_phase(0)
        assert given.engine.step(given.micro_batches(0), engine_worker.RATES).figures().applied
        assert given.engine.prove_phase()
        states.append(given.engine.host_state())
        given.engine.close()
    for expected, found in zip(*states, strict=True):
        assert found.step == expected.step == 1
        for name, tensor in expected.tensors.items():
            apart = (found.tensors[name] - tensor).abs().mean() / tensor.abs().mean()
            assert apart < 1e-4, (found.group, name, apart)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_recorded_step_is_a_launched_one(tmp_path, ranks, stage):
    """In both phases, cut at the seam but under ZeRO-3; and who reads weights between steps finds the last one's."""
    task = make_task(tmp_path, spec=replace(SPEC, encoder_layers=2, num_hidden_layers=3))
    losses: list[list[float]] = [[], []]
    take_fallbacks()
    for is_recorded, seen in enumerate(losses):
        hardware = Hardware("cuda", compile=True, cuda_graphs=bool(is_recorded))
        given = engine_worker.set_up(task, ranks, replace(engine_worker.profile(stage, True, 4), hardware=hardware))
        engine, module = given.engine, given.engine.module
        for phase in (0, 1):
            engine.enter_phase(phase)
            for step in range(8):
                result = engine.step(given.micro_batches(step % 2), engine_worker.RATES)
                engine.prove_phase()
                if step % 3 == 2:  # at once: the last step's weights may be on their way
                    with engine.whole_model() as asr:
                        weights = {name: weight.detach().flatten().clone() for name, weight in asr.named_parameters()}
                    for partition in zero.partitions(engine._engine, engine.asr):
                        for part in partition.fragments:
                            master = partition.master.narrow(0, part.offset, part.length)
                            assert torch.equal(
                                weights[part.parameter][part.start : part.start + part.length], master.bfloat16()
                            ), (step, part)
                seen.append(result.figures().loss)
            if is_recorded:
                recordings = module._recorded._recordings.values()
                pieces = 1 if stage == 3 else 2
                assert recordings and bool(module.seam.weights) == (pieces == 2)
                assert all(len(each.forward) == len(each.backward) == pieces for each in recordings)
        engine.close()
    assert not take_fallbacks()
    launched, recorded = losses
    apart = max(abs(a - b) for a, b in zip(launched, recorded, strict=True))
    print(f"losses {launched[0]:.3f} to {launched[-1]:.3f}, at most {apart:.4f} apart")
    assert launched[-1] < launched[0] - 0.5 and recorded == pytest.approx(launched, abs=0.05)


def test_a_checkpoints_copy_is_page_locked(ranks):
    """Also after memory of another size: what is let go is unlocked, or its addresses could not be locked again."""
    memory = HostMemory()
    for size in (3_000_000, 5_000_000, 3_000_000, 5_000_000):
        tensors = {kind: torch.randn(size, device=ranks.device) for kind in KINDS}
        state = [PartitionState("group", [], tensors, 1.0)]
        memory.reserve(state)
        (copied,) = memory.copy(state)
        for kind, tensor in copied.tensors.items():
            assert tensor.is_pinned() and torch.equal(tensor, tensors[kind].cpu())


@pytest.mark.parametrize(("stage", "bf16"), [(stage, bf16) for bf16 in (True, False) for stage in range(4)])
def test_the_proof_of_phase_holds_and_fails(tmp_path, ranks, stage, bf16):
    """For weights as real ones are; and not where a gradient, the weights or the optimizer's groups are wrong."""
    task = make_task(tmp_path, spec=SPEC)
    profile = replace(engine_worker.profile(stage, bf16, 8), hardware=Hardware("cuda"))
    given = engine_worker.set_up(task, ranks, profile)
    proof_worker.make_realistic(given.asr)
    for phase in (0, 1):
        given.engine.enter_phase(phase)
        proved = proof_worker.step_and_prove(given, phase)
        assert 0 < proved["moved"] < proved["compared"] <= proved["trainable"]
    for sabotage in (proof_worker.detaches_a_weight, proof_worker.moves_a_frozen_weight):
        proof_worker.prove_again(given)
        told = proof_worker.told_of(sabotage, given, 2)
        assert proof_worker.TOLD[sabotage.__name__] in told
    given.engine.close()
