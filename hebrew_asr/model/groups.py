"""Module groups: which weights of Qwen3-ASR a phase trains, by name and shape; plans need neither torch nor a model.

Groups are modules of the tree, never substrings of names: in the native layout ``audio_tower`` does not hold the
projector, and no parameter is called ``lm_head`` where the head is tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hebrew_asr.config.recipe import Phase, Recipe
from hebrew_asr.config.values import unknown_key
from hebrew_asr.errors import UsageError
from hebrew_asr.model.sizes import EMBEDDING, HEAD, Shapes


class ModuleGroup(NamedTuple):
    """Modules that train together, at one learning rate."""

    holds: str
    """What they are, in words."""
    modules: tuple[str, ...] = ()
    """By their names in the native model."""
    layers: str | None = None
    """A list of layers of which the recipe's ``unfrozen_layers`` says how many from the top belong too."""


_STEM = ("conv2d1", "conv2d2", "conv2d3", "conv_out")
# A new group is one entry here and its name in a recipe.
GROUPS = {
    "projector": ModuleGroup(
        "projector, and ln_post at the end of the audio encoder",
        ("model.multi_modal_projector", "model.audio_tower.ln_post"),
    ),
    "llm_top": ModuleGroup(
        "top LLM layers, and the final norm", ("model.language_model.norm",), "model.language_model.layers"
    ),
    "head": ModuleGroup("LM head, which is the input embedding too", ("lm_head",)),
    "audio_top": ModuleGroup("top audio encoder layers", layers="model.audio_tower.layers"),
    "audio_stem": ModuleGroup(
        "convolutions of the audio encoder", tuple(f"model.audio_tower.{name}" for name in _STEM)
    ),
}


class WeightGroup(NamedTuple):
    """Weights of a module group that are of one decay class."""

    module_group: str
    decays: bool
    weights: tuple[str, ...]
    """In the module's order."""

    @property
    def name(self) -> str:
        """``{module group}.decay`` or ``{module group}.no_decay``."""
        return f"{self.module_group}.{'decay' if self.decays else 'no_decay'}"


def phase_groups(shapes: Shapes, recipe: Recipe, phase: Phase) -> list[WeightGroup]:
    """What a phase trains, in a stable order.

    A tied weight belongs to the first group that names it and is counted once. Biases and norm weights (one dimension)
    have no weight decay, nor has the head where rows of it are to stay: AdamW decays whole tensors.
    The same group has the same weights in every phase, which lets its state be carried.

    Args:
        shapes: every weight of the model.
        recipe: says how many layers a group holds.
        phase: of the recipe.

    Raises:
        UsageError: the phase names an unknown group, or more layers than the model has.
    """
    undecayed = _head(shapes) if recipe.optimizer.absent_tokens == "frozen" else None
    groups: list[WeightGroup] = []
    taken: set[str] = set()
    for group in phase.learning_rates:
        members = [name for name in _members(shapes, recipe, group) if name not in taken]
        taken.update(members)
        for decays in (True, False):
            chosen = tuple(name for name in members if (len(shapes[name]) > 1 and name != undecayed) == decays)
            if chosen:  # DeepSpeed fails on an empty group
                groups.append(WeightGroup(group, decays, chosen))
    return groups


def _head(shapes: Shapes) -> str:
    return HEAD if HEAD in shapes else EMBEDDING


def _members(shapes: Shapes, recipe: Recipe, group: str) -> Iterator[str]:
    if group not in GROUPS:
        raise UsageError(f"recipe {recipe.name}: {unknown_key(group, GROUPS, 'phases.N.learning_rates')}")
    _, modules, layers = GROUPS[group]
    for module in (*_top_layers(shapes, recipe, group, layers), *modules):
        yield from (_head(shapes),) if module == "lm_head" else _inside(shapes, module)


def _inside(shapes: Shapes, module: str) -> list[str]:
    return [name for name in shapes if name.startswith(f"{module}.")]


def _top_layers(shapes: Shapes, recipe: Recipe, group: str, layers: str | None) -> list[str]:
    if layers is None:
        return []
    tops: dict[str, int] = {**recipe.unfrozen_layers}
    top = tops.get(group)
    if top is None:
        raise UsageError(f"recipe {recipe.name}: unfrozen_layers does not say how many layers {group} holds")
    available = len({name.removeprefix(f"{layers}.").partition(".")[0] for name in _inside(shapes, layers)})
    if top > available:
        raise UsageError(f"recipe {recipe.name}: {group} wants {top} layers, the model has {available}")
    return [f"{layers}.{index}" for index in range(available - top, available)]
