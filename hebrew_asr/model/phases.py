"""Named module groups: which weights of Qwen3-ASR a phase trains.

Groups are found through the module tree, never by matching substrings of names: in the native layout ``audio_tower``
does not hold the projector, and no parameter is called ``lm_head`` because the head is tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from hebrew_asr.config.recipe import Phase, Recipe
from hebrew_asr.errors import UsageError


class ModuleGroup(NamedTuple):
    """Modules that train together, at one learning rate."""

    holds: str
    """What they are, in words."""
    modules: Callable[[Any, int], list[nn.Module]]
    """(native model, layers from the top) -> modules."""


# A new group is one entry here and its name in a recipe.
GROUPS = {
    "projector": ModuleGroup(
        "projector, and ln_post at the end of the audio encoder",
        lambda asr, _: [asr.model.multi_modal_projector, asr.model.audio_tower.ln_post],
    ),
    "llm_top": ModuleGroup(
        "top LLM layers, and the final norm",
        lambda asr, top: [*asr.model.language_model.layers[-top:], asr.model.language_model.norm],
    ),
    "head": ModuleGroup("LM head, which is the input embedding too", lambda asr, _: [asr.lm_head]),
    "audio_top": ModuleGroup("top audio encoder layers", lambda asr, top: list(asr.model.audio_tower.layers[-top:])),
    "audio_stem": ModuleGroup(
        "convolutions of the audio encoder",
        lambda asr, _: [getattr(asr.model.audio_tower, name) for name in _STEM],
    ),
}
_STEM = ("conv2d1", "conv2d2", "conv2d3", "conv_out")
_LAYERED = {"llm_top": "language_model", "audio_top": "audio_tower"}


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


def _decays(parameter: nn.Parameter, undecayed: nn.Parameter | None) -> bool:
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and parameter is not undecayed


def set_phase(asr: Any, recipe: Recipe, phase: Phase) -> list[ParameterGroup]:
    """Freeze everything but the phase's groups and return its parameter groups, in a stable order.

    A tied weight belongs to the first group that names it and is counted once. Biases and norm weights (one dimension)
    have no weight decay, nor has the head where rows of it are to stay: AdamW decays whole tensors.
    The same group has the same parameters in every phase, which lets its state be carried.

    Raises:
        UsageError: the phase names an unknown group, or more layers than the model has.
    """
    for parameter in asr.parameters():
        parameter.requires_grad_(False)
    undecayed = asr.lm_head.weight if recipe.optimizer.absent_tokens == "frozen" else None
    names = {id(parameter): name for name, parameter in asr.named_parameters()}
    groups: list[ParameterGroup] = []
    taken: set[int] = set()
    for group in phase.learning_rates:
        members = [p for module in _modules(asr, recipe, group) for p in module.parameters() if id(p) not in taken]
        taken |= {id(p) for p in members}
        for decays in (True, False):
            chosen = {names[id(p)]: p for p in members if _decays(p, undecayed) == decays}
            if chosen:  # DeepSpeed fails on an empty group
                suffix = "decay" if decays else "no_decay"
                groups.append(ParameterGroup(f"{group}.{suffix}", group, decays, chosen))
        for parameter in members:
            parameter.requires_grad_(True)
    return groups


def _modules(asr: Any, recipe: Recipe, group: str) -> list[nn.Module]:
    if group not in GROUPS:
        raise UsageError(f"recipe {recipe.name}: no module group {group!r}; there is {', '.join(GROUPS)}")
    if group not in _LAYERED:
        return GROUPS[group].modules(asr, 0)
    top = recipe.unfrozen_layers.get(group)
    if top is None:
        raise UsageError(f"recipe {recipe.name}: unfrozen_layers does not say how many layers {group} holds")
    available = len(getattr(asr.model, _LAYERED[group]).layers)
    if top > available:
        raise UsageError(f"recipe {recipe.name}: {group} wants {top} layers, the model has {available}")
    return GROUPS[group].modules(asr, top)


def check_phases(asr: Any, recipe: Recipe) -> dict[str, dict[str, int]]:
    """Build every phase once, before any GPU is touched, and count its weights: {phase: {module group: weights}}."""
    counts: dict[str, dict[str, int]] = {}
    for phase in recipe.phases:
        sizes: dict[str, int] = {}
        for group in set_phase(asr, recipe, phase):
            sizes[group.module_group] = sizes.get(group.module_group, 0) + group.num_weights
        counts[phase.name] = sizes
    return counts
