"""The parameters of a model that a phase trains: sets them and gives them to the optimizer by module group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hebrew_asr.config.recipe import Phase, Recipe
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.sizes import Shapes


@dataclass(frozen=True)
class ParameterGroup:
    """One optimizer param group: a module group's parameters of one decay class."""

    name: str
    """``{module group}.decay`` or ``{module group}.no_decay``."""
    module_group: str
    decays: bool
    parameters: dict[str, nn.Parameter]
    """By name, in the module's order."""

    @property
    def num_weights(self) -> int:
        """Weights in the group; ``ds_numel`` is the whole size of a parameter that ZeRO-3 has sharded."""
        return sum(num_weights(parameter) for parameter in self.parameters.values())


def num_weights(parameter: nn.Parameter) -> int:
    """Elements of a parameter, sharded by ZeRO-3 or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shapes_of(asr: Any) -> Shapes:
    """Every weight of a native model, sharded by ZeRO-3 or not."""
    return {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in asr.named_parameters()}


def set_phase(asr: Any, recipe: Recipe, phase: Phase) -> list[ParameterGroup]:
    """Freeze everything but the phase's groups and return its parameter groups, as ``phase_groups`` has them.

    Raises:
        UsageError: the phase names an unknown group, or more layers than the model has.
    """
    parameters = dict(asr.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    groups = [
        ParameterGroup(group.name, group.module_group, group.decays, {name: parameters[name] for name in group.weights})
        for group in phase_groups(shapes_of(asr), recipe, phase)
    ]
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    return groups


def check_phases(asr: Any, recipe: Recipe) -> dict[str, dict[str, int]]:
    """Build every phase once, before any GPU is touched, and count its weights: {phase: {module group: weights}}."""
    counts: dict[str, dict[str, int]] = {}
    for phase in recipe.phases:
        sizes: dict[str, int] = {}
        for group in set_phase(asr, recipe, phase):
            sizes[group.module_group] = sizes.get(group.module_group, 0) + group.num_weights
        counts[phase.name] = sizes
    return counts
