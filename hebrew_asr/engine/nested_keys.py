"""The sections of a hardware profile, checked by DeepSpeed's own config models before any model is loaded."""

from __future__ import annotations

import math
from typing import Any, get_args

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, ValidationError

from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.values import complaint, unknown_key
from hebrew_asr.errors import UsageError

_MODELS: dict[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "comms_logger": CommsLoggerConfig,
}
# DeepSpeed has no model of these: it reads the keys that it knows, and takes the defaults' types for granted.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "aio": AIO_DEFAULT_DICT,
    "flops_profiler": {**vars(DeepSpeedFlopsProfilerConfig({})), "output_file": ""},
}


def check_nested_keys(profile: Profile) -> None:
    """Raise UsageError naming every key inside a profile's sections that DeepSpeed would not take."""
    problems = []
    for section, model in _MODELS.items():
        try:
            model(**profile.config.get(section, {}))
        except ValidationError as error:
            problems += [_described(section, model, item) for item in error.errors()]
    for section, defaults in _DEFAULTS.items():
        for key, value in profile.config.get(section, {}).items():
            if key not in defaults:
                problems.append(unknown_key(key, defaults, section))
            elif not _is_like(defaults[key], value):
                problems.append(f"{section}.{key} must be of the kind of DeepSpeed's {defaults[key]!r}, not {value!r}")
    if problems:
        raise UsageError(f"hardware profile {profile.source}: " + "; ".join(problems))


def _is_like(default: Any, value: Any) -> bool:
    """Whether ``value`` is of the default's type and, as a number, not below what it can be at least."""
    if isinstance(default, bool | str):
        return type(value) is type(default)
    allowed = int if isinstance(default, int) else int | float
    return isinstance(value, allowed) and not isinstance(value, bool) and min(default, 1) <= value < math.inf


def _described(section: str, model: type[BaseModel], item: Any) -> str:
    where = ".".join((section, *map(str, item["loc"])))
    if item["type"] != "extra_forbidden":
        return f"{where} {complaint(item)}"
    *inside, key = item["loc"]
    return unknown_key(str(key), _keys_at(model, inside), where.rpartition(".")[0])


def _keys_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Keys of the model that ``location`` leads to, as they are written in JSON."""
    for part in location:
        hint: Any = _fields_by_key(model)[str(part)].annotation
        model = next(inner for inner in (*get_args(hint), hint) if hasattr(inner, "model_fields"))
    return list(_fields_by_key(model))


def _fields_by_key(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}
