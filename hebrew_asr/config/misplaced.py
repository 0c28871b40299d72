"""Options that people look for on the command line and that the recipe owns: ``--lr``, ``--epochs``, and the like."""

from __future__ import annotations

from hebrew_asr.config.options import option_names
from hebrew_asr.config.values import OTHER_NAMES, dotted_keys
from hebrew_asr.errors import UsageError

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
    known = {*option_names(options)}
    if not {"recipe", "set"} <= known:
        return
    for word in argv:
        if word == "--":
            return
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name.replace("_", "-") in known:
            continue
        if name in _HARDWARE:
            raise UsageError(f"{word}: the hardware profile says that; copy a file of ds_configs/ and give it by --ds")
        key = _key(OTHER_NAMES.get(name, name))
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
    if found.endswith(".learning_rates"):
        return f"{found}.head=1e-4 (likewise for each phase and module group that trains)"
    return f"{found}=VALUE"
