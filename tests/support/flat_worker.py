"""Runs on the ranks of a test: optimizer steps whose gradients are known to the bit, under a flat ZeRO stage.

arguments: '[{"stage": 2, "micro_batches": 2, "zero": {"reduce_bucket_size": 10}}, …]' [cuda]; fails by assertion.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from hebrew_asr.config.batching import Batching, deepspeed_config
from hebrew_asr.config.recipe import Optimizer, load_recipe
from hebrew_asr.engine import dist, zero
from hebrew_asr.fallbacks import take_fallbacks
from hebrew_asr.flat.adamw import update
from hebrew_asr.flat.zero1 import FlatZeRO1
from hebrew_asr.flat.zero2 import FlatZeRO2
from hebrew_asr.flat.zero3 import FlatZeRO3
from hebrew_asr.model.phases import ParameterGroup
from hebrew_asr.passes.seam import Seam
from hebrew_asr.passes.sharded import ShardedWeights
from tests.support.engine_worker import profile
from tests.support.gpu_task import no_host_sync

SHAPES = {
    "decay": {"large": (11, 13), "silent": (2, 2), "small": (3, 3)},
    "no_decay": {"one": (1,), "bias": (6,)},
    "rows": {"tall": (41, 6)},
}
"""Odd sizes, so that groups are padded, on one rank too, and slices and buckets end within parameters."""
LIVE = (3, 13, 20, 22, 40)
"""Rows of ``tall`` that have a gradient. Between 2 ranks row 20 is cut, between 3 row 13, and one has a single row."""
STEPS, RATE = 2, 1e-2
FLAT = {1: FlatZeRO1, 2: FlatZeRO2, 3: FlatZeRO3}


class Weighted(nn.Module):
    """Its output's gradient in each parameter is what ``forward`` is given for it; a parameter left out has none."""

    sharded: ShardedWeights | None = None

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for shapes in SHAPES.values():
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).bfloat16()))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        """Scalar."""
        if self.sharded is None:
            return weighted_sum(self, gradients)
        self.sharded.begin_pass()
        return self.sharded.run(lambda part, *given: part(*given), weighted_sum, self, gradients, rereads=True)


def weighted_sum(module: nn.Module, gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack([(module.get_parameter(name) * value).sum() for name, value in gradients.items()]).sum()


def gradients_of(step: int, micro_batch: int, rank: int) -> dict[str, Tensor]:
    """Multiples of 6 that bf16 holds exactly: so are their means over 2 or 3 ranks. ``silent`` never has any.

    On the first rank the second micro-batch has none for ``large``, and on others the first has none for ``bias``.
    """
    generator = torch.Generator().manual_seed(100 * step + 10 * micro_batch + rank)
    found = {
        name: 6.0 * torch.randint(-3, 4, shape, generator=generator).bfloat16()
        for shapes in SHAPES.values()
        for name, shape in shapes.items()
        if name != "silent"
    }
    found["tall"].masked_fill_(stays(), 0.0)
    left_out = "large" if rank == 0 and micro_batch == 1 else "bias" if rank and micro_batch == 0 else None
    found.pop(left_out, None)
    return found


def stays() -> Tensor:
    """(rows, 1) of ``tall``."""
    rows = torch.ones(SHAPES["rows"]["tall"][0], 1, dtype=torch.bool)
    rows[list(LIVE)] = False
    return rows


def means(step: int, micro_batches: int, num_ranks: int) -> dict[str, Tensor]:
    """What a step's gradients add up to, as a mean over ranks, in fp32."""
    sums = {name: torch.zeros(shape) for shapes in SHAPES.values() for name, shape in shapes.items()}
    for rank in range(num_ranks):
        for micro_batch in range(micro_batches):
            for name, value in gradients_of(step, micro_batch, rank).items():
                sums[name] += value
    return {name: total / num_ranks for name, total in sums.items()}


def pieces(partitions: list[zero.Partition], flats: list[Tensor]) -> Iterator[tuple[zero.Fragment, Tensor]]:
    """What this rank holds, of one flat tensor a group."""
    for partition, flat in zip(partitions, flats, strict=True):
        for fragment in partition.fragments:
            yield fragment, flat.detach().narrow(0, fragment.offset, fragment.length)


def same_as(found: Tensor, expected: Tensor, atol: float, what: str) -> None:
    """Within ``atol``, and within a millionth."""
    torch.testing.assert_close(found.cpu().float(), expected, rtol=1e-6, atol=atol, msg=lambda told: f"{what}: {told}")


def type_of_sums(optimizer: Any, spec: dict, ranks: dist.Ranks) -> torch.dtype:
    """Of gradients that nothing is added to: their own, as long as AdamW is compiled."""
    is_alone = ranks.size == spec["micro_batches"] == 1
    return torch.bfloat16 if is_alone and optimizer._update is not None else torch.float32


def run(ranks: dist.Ranks, spec: dict) -> None:
    """Two steps; gradients on their owners, masters, and the weights on every rank are what torch makes of them.

    On CUDA the second step does not wait for the device.
    """
    recipe, module = load_recipe("round2", ["optimizer.clip_grad_norm=5.0"]), Weighted()
    masters = {name: p.detach().float().requires_grad_() for name, p in module.named_parameters()}
    torchs = plain_adamw(masters, recipe.optimizer)
    module.to(ranks.device)
    groups = [
        ParameterGroup(group, group, group == "decay", {name: module.get_parameter(name) for name in shapes})
        for group, shapes in SHAPES.items()
    ]
    given = profile(spec["stage"], True, 1, compiled=spec.get("compiled", False), **spec.get("zero", {}))
    module.seam = seam = Seam()
    module.kept_rows = {module.tall: stays().to(ranks.device)} if spec.get("keeps_rows") else {}
    seam.weights = frozenset(module.get_parameter(name) for name in spec.get("above", ()))
    take_fallbacks()
    batching = Batching(ranks.size * spec["micro_batches"], ranks.size, spec["micro_batches"], 1)
    config = deepspeed_config(given, recipe, batching)
    config["communication_data_type"] = spec.get("sends", "fp32")
    beside = spec.get("ranks_a_machine", ranks.size)
    with patch.dict(os.environ, LOCAL_WORLD_SIZE=str(beside)):
        engine = zero.build(module, groups, config, recipe.optimizer, given)
    assert type(engine.optimizer) is FLAT[spec["stage"]]
    assert getattr(engine.optimizer, "_sends_bf16", False) == (spec.get("sends") == "bf16" and beside >= ranks.size)
    assert [rows is not None for rows in engine.optimizer._live] == [False, False, "keeps_rows" in spec]
    if "fails_at" in spec:
        engine.optimizer._update = compiled_up_to(spec["fails_at"], str(spec))
    zero.set_learning_rates(engine, dict.fromkeys(SHAPES, RATE))
    partitions = zero.partitions(engine, module)
    for partition in partitions:
        zero.adam_state(engine, partition)
    for step in range(STEPS):
        of_sums, expected = type_of_sums(engine.optimizer, spec, ranks), means(step, spec["micro_batches"], ranks.size)
        own = train(engine, spec, step, ranks, seam)
        seam.wait()
        if spec["stage"] > 1:
            assert {part.dtype for part in own} == {of_sums}, spec
            rows = engine.optimizer._live[-1]
            if rows is not None:  # what is left out is 0
                live, own[-1] = own[-1], torch.zeros_like(partitions[-1].master)
                rows.put_own(own[-1], live.float())
            for fragment, piece in pieces(partitions, own):
                same_as(piece, part_of(expected, fragment), 0, f"{spec}: gradient of {fragment}")
        for name, master in masters.items():
            master.grad = expected[name]
        norm = nn.utils.clip_grad_norm_(masters.values(), recipe.optimizer.clip_grad_norm)
        same_as(torch.as_tensor(engine.get_global_grad_norm()), norm, 1e-4, f"{spec}: norm")
        torchs.step()
        for fragment, piece in pieces(partitions, [partition.master for partition in partitions]):
            same_as(piece, part_of(masters, fragment), 1e-6, f"{spec}: master of {fragment}")
        for name, found in whole_weights(module):
            torch.testing.assert_close(found, masters[name].detach(), rtol=2**-8, atol=1e-6)
    if spec["stage"] > 1:
        assert engine.optimizer._gradients is None and not engine.optimizer._buffers, "memory was kept after the step"
    assert len(take_fallbacks()) == ("fails_at" in spec)
    zero.release(engine)


def whole_weights(module: Weighted) -> Iterator[tuple[str, Tensor]]:
    """fp32, as every rank has them or gathers them."""
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=module.sharded is not None):
            yield name, parameter.detach().float().cpu()


def compiled_up_to(call: int, reason: str) -> Callable[..., None]:
    """As ``torch.compile`` gives it, where it comes to a group that it cannot compile: nothing of that has changed."""
    calls = count()

    def run_or_fail(*given: Any) -> None:
        if next(calls) >= call:
            raise FailOnRecompileLimitHit(reason)
        update(*given)

    return run_or_fail


def plain_adamw(masters: dict[str, Tensor], options: Optimizer) -> torch.optim.Optimizer:
    """torch's, on whole parameters."""
    groups = [
        {"params": [masters[name] for name in shapes], "weight_decay": options.weight_decay * (group == "decay")}
        for group, shapes in SHAPES.items()
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(options.beta1, options.beta2), eps=options.eps)


def train(engine: Any, spec: dict, step: int, ranks: dist.Ranks, seam: Seam) -> list[Tensor]:
    """One step; returns this rank's gradients by param group, as they are before it. ZeRO-1's are not reduced then."""
    given = [gradients_of(step, micro_batch, ranks.rank) for micro_batch in range(spec["micro_batches"])]
    given = [{name: value.to(ranks.device) for name, value in micro_batch.items()} for micro_batch in given]
    with no_host_sync() if step and ranks.device.type == "cuda" else nullcontext():
        for micro_batch in given:
            seam.begin_pass(is_cut=bool(seam.weights) and ranks.device.type == "cuda")
            loss = engine(micro_batch) * 1.0  # not its very output, as DeepSpeed needs
            engine.backward(loss, scale_wrt_gas=False)
            if seam.is_cut:
                seam.gradients_are_queued()  # as a recorded pass says earlier
            zero.reduce_micro_batch(engine)
            assert all(p.grad is None for p in engine.module.parameters()), "bf16 gradients were kept"
        own = [gradient.clone() for gradient in engine.optimizer._own_gradients()]  # AdamW scales them in place
        engine.step()
    return own


def part_of(whole: dict[str, Tensor], fragment: zero.Fragment) -> Tensor:
    return whole[fragment.parameter].detach().flatten().narrow(0, fragment.start, fragment.length)


def main(arguments: list[str]) -> int:
    specs, *device = [part for part in arguments if not part.startswith("--local_rank")]
    ranks = dist.start(*(device or ["cpu"]))
    for spec in json.loads(specs):
        gc.freeze()  # DeepSpeed collects garbage all the time; the end of an engine took back what was set aside
        run(ranks, spec)
    dist.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
