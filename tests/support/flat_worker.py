"""Runs on the ranks of a test: optimizer steps whose gradients are known to the bit, under a flat ZeRO stage.

arguments: '[{"stage": 2, "micro_batches": 2, "zero": {"reduce_bucket_size": 10}}, …]'; fails by assertion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hebrew_asr.engine import dist, zero
from hebrew_asr.engine.flat_zero1 import FlatZeRO1
from hebrew_asr.engine.flat_zero2 import FlatZeRO2
from hebrew_asr.model.phases import ParameterGroup
from hebrew_asr.profiles import Batching, deepspeed_config
from hebrew_asr.recipe import load_recipe
from tests.support.engine_worker import profile

SHAPES = {"decay": {"large": (11, 13), "silent": (2, 2), "small": (3, 3)}, "no_decay": {"one": (1,), "bias": (7,)}}
"""Odd sizes, so that groups are padded, and slices and buckets end within parameters."""
STEPS, RATE = 2, 1e-2
FLAT = {1: FlatZeRO1, 2: FlatZeRO2}


class Weighted(nn.Module):
    """Its output's gradient in each parameter is what ``forward`` is given for it; a parameter left out has none."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for shapes in SHAPES.values():
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).bfloat16()))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        """Scalar."""
        return torch.stack([(self.get_parameter(name) * value).sum() for name, value in gradients.items()]).sum()


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
    left_out = "large" if rank == 0 and micro_batch == 1 else "bias" if rank and micro_batch == 0 else None
    found.pop(left_out, None)
    return found


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
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol, msg=lambda told: f"{what}: {told}")


def run(ranks: dist.Ranks, spec: dict) -> None:
    """Two steps; gradients on their owners, masters, and the weights on every rank are what torch makes of them."""
    micro_batches = spec["micro_batches"]
    recipe, module = load_recipe("round2", ["optimizer.clip_grad_norm=5.0"]), Weighted()
    groups = [
        ParameterGroup(group, group, group == "decay", {name: module.get_parameter(name) for name in shapes})
        for group, shapes in SHAPES.items()
    ]
    given = profile(spec["stage"], True, 1, **spec.get("zero", {}))
    plan = Batching(ranks.size * micro_batches, ranks.size, micro_batches, 1)
    masters = {name: p.detach().float().requires_grad_() for name, p in module.named_parameters()}
    options = recipe.optimizer
    torchs = torch.optim.AdamW(
        [
            {"params": [masters[name] for name in shapes], "weight_decay": options.weight_decay * (group == "decay")}
            for group, shapes in SHAPES.items()
        ],
        lr=RATE,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
    engine = zero.build(module, groups, deepspeed_config(given, recipe, plan), options, compiled=False)
    assert type(engine.optimizer) is FLAT[spec["stage"]]
    zero.set_learning_rates(engine, dict.fromkeys(SHAPES, RATE))
    partitions = zero.partitions(engine, groups)
    for partition in partitions:
        zero.adam_state(engine, partition)
    for step in range(STEPS):
        for micro_batch in range(micro_batches):
            loss = engine(gradients_of(step, micro_batch, ranks.rank)) * 1.0  # not its very output, as DeepSpeed needs
            engine.backward(loss, scale_wrt_gas=False)
            zero.reduce_micro_batch(engine)
            assert all(p.grad is None for p in module.parameters()), "bf16 gradients were kept"
        expected = means(step, micro_batches, ranks.size)
        if spec["stage"] == 2:
            for fragment, own in pieces(partitions, engine.optimizer._own_gradients()):
                wanted = expected[fragment.parameter].flatten().narrow(0, fragment.start, fragment.length)
                same_as(own, wanted, 0, f"{spec}: gradient of {fragment}")
        engine.step()
        for name, master in masters.items():
            master.grad = expected[name]
        norm = nn.utils.clip_grad_norm_(masters.values(), options.clip_grad_norm)
        torch.testing.assert_close(torch.as_tensor(engine.get_global_grad_norm()), norm, rtol=1e-5, atol=0)
        torchs.step()
        for fragment, own in pieces(partitions, [partition.master for partition in partitions]):
            wanted = masters[fragment.parameter].detach().flatten().narrow(0, fragment.start, fragment.length)
            same_as(own, wanted, 1e-6, f"{spec}: master of {fragment}")
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.detach().float(), masters[name].detach(), rtol=2**-8, atol=1e-6)
    if spec["stage"] == 2:
        assert engine.optimizer._gradients is None and not engine.optimizer._buffers, "memory was kept after the step"
    zero.release(engine)


def main(arguments: list[str]) -> int:
    ranks = dist.start("cpu")
    for spec in json.loads(arguments[0]):
        run(ranks, spec)
    dist.stop()
    return 0
