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
_MOST_ELEMENTS = 1 << 36
"""Of a bucket, which DeepSpeed allocates whole: it would be 256 GiB in fp32."""
# DeepSpeed has no model of these: it reads the keys that it knows, and takes the defaults' types for granted.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "aio": AIO_DEFAULT_DICT,
    "flops_profiler": {**vars(DeepSpeedFlopsProfilerConfig({})), "output_file": ""},
}


def check_nested_keys(profile: Profile) -> None:
    """Raise UsageError naming every key inside a profile's sections that DeepSpeed would not take."""
    problems = []
    for section, model in _MODELS.items():
        values = profile.config.get(section, {})
        if lax := _lax(section, model, values):
            problems += lax
            continue
        try:
            model(**values)
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


def _lax(above: str, model: type[BaseModel], values: dict[str, Any]) -> list[str]:
    """What DeepSpeed takes, to fail later or to guess: text and booleans for numbers, keys of its older releases."""
    problems, known = [], {**model.model_fields, **_fields_by_key(model)}
    for key, value in values.items():
        if (field := known.get(key)) is None:
            continue
        where, hints = f"{above}.{key}", (*get_args(field.annotation), field.annotation)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, dict) and (inner := _inner(hints)) is not None:
            problems += _lax(where, inner, value)
        elif isinstance(field.json_schema_extra, dict) and "new_param" in field.json_schema_extra:
            problems.append(f"{where} is of an older DeepSpeed: write {field.json_schema_extra['new_param']}")
        elif bool in hints and not isinstance(value, bool | None):
            problems.append(f"{where} must be true or false, not {value!r}")
        elif {int, float} & {*hints} and not is_number:
            problems.append(f"{where} must be a number, not {value!r}")
        elif is_number and key.endswith("bucket_size") and _MOST_ELEMENTS < value < math.inf:
            problems.append(f"{where} must be at most {_MOST_ELEMENTS} elements, not {value!r}")
    return problems


def _inner(hints: tuple[Any, ...]) -> type[BaseModel] | None:
    return next((hint for hint in hints if hasattr(hint, "model_fields")), None)


def _is_like(default: Any, value: Any) -> bool:
    """Whether ``value`` is of the default's type and, as a number, not below what it can be at least."""
    if isinstance(default, bool | str):
        return type(value) is type(default)
    allowed = int if isinstance(default, int) else int | float
    return isinstance(value, allowed) and not isinstance(value, bool) and min(default, 1) <= value < math.inf


def _described(section: str, model: type[BaseModel], item: Any) -> str:
    where = ".".join((section, *map(str, item["loc"])))
    if item["type"] in ("assertion_error", "value_error"):  # of DeepSpeed's own making
        return f"{where}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        return f"{where} {complaint(item)}"
    *inside, key = item["loc"]
    return unknown_key(str(key), _keys_at(model, inside), where.rpartition(".")[0])


def _keys_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Keys of the model that ``location`` leads to, as they are written in JSON."""
    for part in location:
        hint: Any = _fields_by_key(model)[str(part)].annotation
        model = _inner((*get_args(hint), hint)) or model
    return list(_fields_by_key(model))


def _fields_by_key(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}
