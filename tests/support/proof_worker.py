"""Runs on the ranks of a test: a model with weights as real ones are, proved over a change of phase, then sabotaged.

arguments: TASK '[{"out": DIR, "stage": 2, "bf16": false, "micro": 4, "sabotage": true}, …]'
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hebrew_asr.engine import dist, zero
from hebrew_asr.engine.phase_proof import PhaseProof
from hebrew_asr.errors import TrainingFault
from hebrew_asr.model.phases import set_phase
from tests.support.engine_worker import Setting, profile, set_up

RATES = dict.fromkeys(("projector", "llm_top", "head", "audio_top"), 1.7e-7)
"""Of the real recipe's first step: far below a unit in the last place of a large norm weight."""


@torch.no_grad()
def make_realistic(asr: torch.nn.Module) -> None:
    """Give biases and norms sizes that trained ones have; fresh biases are 0, where any rounding noise is a move."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in asr.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
        if name.endswith(("ln_post.weight", "language_model.norm.weight")):
            parameter += 8


def step_and_prove(given: Setting, step: int, after: Callable[[], None] = lambda: None) -> dict[str, int]:
    assert given.engine.step(given.micro_batches(step), RATES).figures().applied
    after()
    proved = given.engine.prove_phase()
    assert proved is not None
    return proved


def prove_again(given: Setting) -> None:
    engine = given.engine
    engine._proof = PhaseProof(engine.asr, engine.groups, engine._profile.zero_stage, engine.ranks)


@contextmanager
def around_adamw(given: Setting, change: Callable[[Any, Callable[[], Any]], None]) -> Iterator[None]:
    """Within, ``change(adamw, step)`` takes the place of torch's step."""
    adamw = zero.inner_optimizer(given.engine._engine)
    real = adamw.step
    adamw.step = lambda *_, **__: change(adamw, real)
    try:
        yield
    finally:
        del adamw.step


def local(given: Setting, parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.ds_tensor if given.engine._profile.zero_stage == 3 else parameter.detach()  # type: ignore[attr-defined]


def is_rank_1(given: Setting) -> bool:
    return given.engine.ranks.rank == 1


def never_steps(given: Setting, step: int) -> None:
    """One rank of two."""
    with around_adamw(given, lambda adamw, real: None if is_rank_1(given) else real()):
        step_and_prove(given, step)


def loses_gradient(given: Setting, step: int) -> None:
    """On its way to one rank of two, whose AdamW steps all the same."""

    def change(adamw: Any, real: Callable[[], Any]) -> None:
        for parameter in _params(adamw) if is_rank_1(given) else ():
            if parameter.grad is not None:  # a flat stage steps a group at a time
                parameter.grad.zero_()
        real()

    with around_adamw(given, change):
        step_and_prove(given, step)


def misses_a_group(given: Setting, step: int) -> None:
    def change(adamw: Any, real: Callable[[], Any]) -> None:
        for group in adamw.param_groups:
            for parameter in group["params"]:
                parameter.grad = None if group["name"] == "llm_top.no_decay" else parameter.grad
        real()

    with around_adamw(given, change):
        step_and_prove(given, step)


def moves_one_element(given: Setting, step: int) -> None:
    """Of each master, and no other."""

    def change(adamw: Any, real: Callable[[], Any]) -> None:
        before = [(parameter, parameter.detach().clone()) for parameter in _params(adamw)]
        real()
        for parameter, old in before:
            parameter.detach().view(-1)[1:] = old.view(-1)[1:]

    with around_adamw(given, change):
        step_and_prove(given, step)


def moves_a_frozen_weight(given: Setting, step: int) -> None:
    def change() -> None:
        local(given, given.asr.model.audio_tower.conv_out.weight).view(-1)[0] += 1

    step_and_prove(given, step, change)


def detaches_a_weight(given: Setting, step: int) -> None:
    linear = given.asr.model.language_model.layers[-1].mlp.up_proj
    linear.forward = lambda hidden: F.linear(hidden, linear.weight.detach())
    try:
        step_and_prove(given, step)
    finally:
        del linear.forward


def forgets_the_weights(given: Setting, step: int, only_rank_1: bool = False) -> None:
    """The masters move, and the model goes on with something else."""
    weight = local(given, given.asr.model.language_model.layers[-1].mlp.up_proj.weight)
    before = weight.clone()

    def change() -> None:
        if is_rank_1(given) or not only_rank_1:
            weight.add_(1)

    try:
        step_and_prove(given, step, change)
    finally:
        weight.copy_(before + 0)


def forgets_them_on_one_rank(given: Setting, step: int) -> None:
    forgets_the_weights(given, step, only_rank_1=True)


def flips_requires_grad(given: Setting, step: int) -> None:
    """What looks like gradual unfreezing, and trains nothing."""
    for layer in given.asr.model.audio_tower.layers[-2:]:
        layer.requires_grad_(True)
    prove_again(given)
    step_and_prove(given, step)


def flips_and_believes_it(given: Setting, step: int) -> None:
    """As before, and the trainer counts the layers among its groups."""
    recipe = given.engine._recipe
    given.engine.groups = set_phase(given.asr, recipe, recipe.phases[1])
    prove_again(given)
    step_and_prove(given, step)


def _params(adamw: Any) -> list[torch.Tensor]:
    return [parameter for group in adamw.param_groups for parameter in group["params"]]


# Those that leave ranks apart under ZeRO-0 come last.
SABOTAGE = [
    *(detaches_a_weight, misses_a_group, moves_a_frozen_weight, forgets_the_weights, forgets_them_on_one_rank),
    *(moves_one_element, loses_gradient, never_steps),
]
FLIPS = [flips_requires_grad, flips_and_believes_it]
TOLD = {
    "flips_requires_grad": "require gradients and should not train",
    "flips_and_believes_it": "not in the optimizer's partitions, each element once",
    "detaches_a_weight": "1 parameters should train and got no gradient (model.language_model.layers.",
    "misses_a_group": "AdamW took no step on them",
    "moves_a_frozen_weight": "1 parameters are frozen and moved",
    "forgets_the_weights": "1 parameters are not what their masters say",
    "forgets_them_on_one_rank": "1 parameters are not the same on all ranks",
    "moves_one_element": "did not move where AdamW's moments say that they must",
    "loses_gradient": "their gradient did not reach AdamW's moments on rank 1",
    "never_steps": "AdamW took no step on them on rank 1",
}
"""What the proof says of each."""


def run(task: Path, ranks: dist.Ranks, spec: dict) -> dict[str, Any]:
    """Honest steps first: what the proof says of each; then what it says of each sabotage."""
    given = set_up(task, ranks, profile(spec["stage"], spec["bf16"], spec["micro"]))
    make_realistic(given.asr)
    log: dict[str, Any] = {"proved": [], "told": {}}
    for phase in (0, 1):
        given.engine.enter_phase(phase)
        if spec["sabotage"] and phase == 0:
            for sabotage in FLIPS:
                log["told"][sabotage.__name__] = told_of(sabotage, given, 0)
            given.engine.groups = set_phase(given.asr, given.engine._recipe, given.engine._recipe.phases[0])
            prove_again(given)
        log["proved"].append(step_and_prove(given, phase))
    for sabotage in SABOTAGE if spec["sabotage"] else ():
        prove_again(given)
        log["told"][sabotage.__name__] = told_of(sabotage, given, 2)
    given.engine.close()
    return log


def told_of(sabotage: Callable[[Setting, int], None], given: Setting, step: int) -> str:
    """What the proof says of it; nothing if it finds nothing."""
    try:
        sabotage(given, step)
    except TrainingFault as fault:
        assert fault.is_common, "one rank prints what all found"
        return str(fault)
    return ""


def main(arguments: list[str]) -> int:
    task, specs = Path(arguments[0]), json.loads(arguments[1])
    ranks = dist.start("cpu")
    for spec in specs:
        gc.freeze()  # DeepSpeed collects garbage all the time; the end of an engine took back what was set aside
        log = run(task, ranks, spec)
        Path(f"{spec['out']}-rank{ranks.rank}.json").write_text(json.dumps(log))
    dist.stop()
    return 0
