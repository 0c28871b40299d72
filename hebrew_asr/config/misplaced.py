"""Options that people look for on the command line and that the recipe owns: ``--lr``, ``--epochs``, and the like."""

from __future__ import annotations

from typing import get_args, get_origin

from hebrew_asr.config.values import dotted_keys, entries
from hebrew_asr.errors import UsageError

_OTHER_NAMES = {
    "lr": "learning_rates",
    "model": "model.path",
    "learning_rate": "learning_rates",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "clips_per_step",
    "effective_batch_size": "clips_per_step",
    "global_batch_size": "clips_per_step",
    "wd": "weight_decay",
    "warmup": "warmup_share",
    "warmup_ratio": "warmup_share",
    "grad_clip": "clip_grad_norm",
    "max_grad_norm": "clip_grad_norm",
    "num_workers": "workers",
}
"""What other trainers call a key of the recipe."""
_HARDWARE = {
    *("per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps", "bf16", "fp16", "zero_stage"),
}


def refuse_recipe_keys(options: type, argv: list[str]) -> None:
    """Say how to give what is no option of a command with ``--recipe`` and ``--set``.

    Args:
        options: the command's dataclass.
        argv: its command line.

    Raises:
        UsageError: an unknown option is the name of a key of the recipe, or of the hardware profile.
    """
    known = {getattr(mark, "name", None) or entry.name for entry in entries(options) for mark in (*entry.marks, entry)}
    if not {"recipe", "set"} <= known:
        return
    for word in argv:
        if word == "--":
            return
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name in known:
            continue
        if name in _HARDWARE:
            raise UsageError(f"{word}: the hardware profile says that; copy a file of ds_configs/ and give it by --ds")
        key = _key(_OTHER_NAMES.get(name, name))
        if key is not None:
            raise UsageError(f"{word.partition('=')[0]} is no option: the recipe says that; give --set {key}")


def _key(name: str) -> str | None:
    """The key of the recipe with this name, as ``--set`` takes it; None if there is none."""
    from hebrew_asr.config.recipe import Recipe  # a fifth of a second, which most command lines do without

    keys = list(dotted_keys(Recipe))
    values = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    found = next((key for key in values if name in (key, key.rpartition(".")[2])), None)
    if found is None:
        return None
    first, _, rest = found.partition(".")
    lists = {entry.name for entry in entries(Recipe) if get_origin(entry.hint) is list and get_args(entry.hint)}
    shown = f"{first}.0.{rest}" if first in lists and rest else found
    if shown.endswith(".learning_rates"):
        return f"{shown}.head=1e-4 (likewise for each phase and module group that trains)"
    return f"{shown}=VALUE"
