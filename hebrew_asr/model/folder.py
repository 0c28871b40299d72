"""What a model folder says, checked before anything is built of it: it may be somebody else's, or half of a download.

Only JSON and safetensors are read, and only what is known is taken from a config: it can name code to run, other files
to load, a quantizer, or a kernel to fetch, and transformers would follow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig, Qwen3ASRConfig, Qwen3Config
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

from hebrew_asr.errors import CheckpointError, on_one_line
from hebrew_asr.files import from_json
from hebrew_asr.model.layouts import AUDIO_KEYS, TEXT_KEYS, native_config, taken
from hebrew_asr.model.sizes import AUDIO_SIZES, TEXT_SIZES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_MAX_JSON_BYTES = 64 << 20
_MAX_WEIGHTS = 100_000_000_000
"""Fifty times the largest Qwen3-ASR: more is a wrong number in a config."""
_MAX_LAYERS = 1000
_MAX_SIZE = 1 << 22
"""Most that any single dimension or count may be; a vocabulary is the largest."""
_LFS = b"version https://git-lfs"
_VOCABULARY = ("vocab.json", "merges.txt")
_FLOATS = ("F64", "F32", "F16", "BF16")

_NATIVE_AUDIO_KEYS = (*AUDIO_KEYS, "max_position_embeddings")
_NATIVE_TEXT_KEYS = (
    *(*TEXT_KEYS, "rope_parameters", "tie_word_embeddings", "use_sliding_window", "sliding_window"),
    *("max_window_layers", "layer_types", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_NATIVE_KEYS = (
    *("audio_token_id", "timestamp_token_id", "pad_token_id", "eos_token_id", "initializer_range"),
    "tie_word_embeddings",
)
_SIZES = {"audio_config": AUDIO_SIZES, "text_config": (*TEXT_SIZES, "max_position_embeddings")}
_MODEL_TYPES = {
    "audio_config": ("qwen3_asr_encoder", "qwen3_asr_audio_encoder"),
    "text_config": ("qwen3", "qwen3_asr_text"),
}
"""In the native layout, and in the thinker layout."""


@contextmanager
def blamed_on(what: Path, problem: str) -> Iterator[None]:
    """Whatever is raised within is the fault of the file or folder ``what``.

    transformers, tokenizers and safetensors raise errors of a dozen types over a file that is wrong, and Rust's panics
    are no ``Exception``. Device memory that runs out is no fault of a file.
    """
    try:
        yield
    except (CheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what} {problem}: {on_one_line(error) or type(error).__name__}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is no such file, too large to be one, or holds something else.
    """
    _require_file(file)
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{file} is larger than {_MAX_JSON_BYTES >> 20} MiB, so it is no such file of a model")
    with blamed_on(file, "is not JSON"):
        values = from_json(file.read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return values


# ---- config


def read_config(folder: Path) -> tuple[Qwen3ASRConfig, bool]:
    """The model's config in native form, and whether the folder is in the thinker layout.

    Raises:
        CheckpointError: no config.json, or one of another model, or one that describes none.
    """
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise CheckpointError(f"{folder} has no config.json; give the folder of a Qwen3-ASR model")
    values = read_json(file)
    if values.get("model_type") != "qwen3_asr":
        raise CheckpointError(f"{file} describes a {values.get('model_type')!r} model, not qwen3_asr")
    is_thinker = "thinker_config" in values
    described = values["thinker_config"] if is_thinker else values
    if not isinstance(described, dict):
        raise CheckpointError(f"{file}: thinker_config is no JSON object")
    for part in (values, described, *(described.get(name) for name in _SIZES)):
        if isinstance(part, dict) and part.get("quantization_config"):
            raise CheckpointError(
                f"{file} describes quantized weights, which cannot be trained; take the original model"
            )
    for name in _SIZES:
        _check_section(file, described, name)
    with blamed_on(file, "describes no model"):
        config = native_config(values) if is_thinker else _native_config(values)
    _check_sizes(file, config)
    return config, is_thinker


def _check_section(file: Path, described: dict[str, Any], name: str) -> None:
    section = described.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"{file} has no {name}, which every Qwen3-ASR has; it is damaged or of another model")
    kind = section.get("model_type", _MODEL_TYPES[name][0])
    if kind not in _MODEL_TYPES[name]:
        raise CheckpointError(f"{file}: {name} is of a {kind!r} model, not {' or '.join(_MODEL_TYPES[name])}")


def _native_config(values: dict[str, Any]) -> Qwen3ASRConfig:
    return Qwen3ASRConfig(
        audio_config=Qwen3ASREncoderConfig(**taken(values["audio_config"], _NATIVE_AUDIO_KEYS)),
        text_config=Qwen3Config(**taken(values["text_config"], _NATIVE_TEXT_KEYS)),
        **taken(values, _NATIVE_KEYS),
    )


def _check_sizes(file: Path, config: Qwen3ASRConfig) -> None:
    parts: dict[str, Any] = {"audio_config": config.audio_config, "text_config": config.text_config}
    for name, part in parts.items():
        values = part.to_dict()
        for key, value in {**values, **(values.get("rope_parameters") or {})}.items():
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise CheckpointError(f"{file}: {name}.{key} is {value}, which no model has")
        for key in _SIZES[name]:
            if not 1 <= getattr(part, key) <= _MAX_SIZE:
                raise CheckpointError(f"{file}: {name}.{key} is {getattr(part, key)}, which no model has")
    count, layers = (
        least_weights(config),
        max(parts["text_config"].num_hidden_layers, parts["audio_config"].encoder_layers),
    )
    if count > _MAX_WEIGHTS or layers > _MAX_LAYERS:
        raise CheckpointError(
            f"{file} describes {count:.1e} weights in up to {layers:,} layers, which no Qwen3-ASR has"
        )
    if not 0 <= config.audio_token_id < parts["text_config"].vocab_size:
        raise CheckpointError(f"{file}: audio_token_id {config.audio_token_id} is not in the vocabulary")


def least_weights(config: Qwen3ASRConfig) -> int:
    """Weights of all matrices of attention and feed-forward layers and of the vocabulary: a model has some more."""
    audio: Any = config.audio_config
    text: Any = config.text_config
    heads = 2 * (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    in_text = text.num_hidden_layers * text.hidden_size * (heads + 3 * text.intermediate_size)
    in_audio = audio.encoder_layers * audio.d_model * (4 * audio.d_model + 2 * audio.encoder_ffn_dim)
    return text.vocab_size * text.hidden_size + in_text + in_audio


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """How the model's makers decode with it; None where they do not say.

    Raises:
        CheckpointError: the file is not what it should be.
    """
    file = folder / "generation_config.json"
    if not os.path.lexists(file):
        return None
    with blamed_on(file, "is no generation config"):
        return GenerationConfig.from_dict(read_json(file))


def check_tokenizer_files(folder: Path) -> None:
    """A vocabulary, in one file or in two, and a config of the tokenizer that is one if there is any.

    Raises:
        CheckpointError: there is no vocabulary, or one of the files is none.
    """
    found = [name for name in ("tokenizer.json", *_VOCABULARY) if os.path.lexists(folder / name)]
    for name in found:
        _require_file(folder / name)
    if "tokenizer.json" not in found and len(found) < len(_VOCABULARY):
        raise CheckpointError(
            f"{folder} holds no usable tokenizer: neither tokenizer.json nor {' and '.join(_VOCABULARY)}"
        )
    if os.path.lexists(folder / "tokenizer_config.json"):
        read_json(folder / "tokenizer_config.json")


# ---- weights


@contextmanager
def open_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor of the folder by its name, as a slice of its file that is not read yet.

    ``model.safetensors`` counts where there is one; otherwise what ``model.safetensors.index.json`` names, exactly.

    Raises:
        CheckpointError: a file is missing, cut short, no safetensors, or lies elsewhere; the message names it.
    """
    listed = _indexed(folder) if not os.path.lexists(folder / WEIGHTS) else None
    names = sorted(set(listed.values())) if listed is not None else [WEIGHTS]
    opened: list[Any] = []
    found: dict[str, tuple[str, Any]] = {}
    try:
        for name in names:
            file = _inside(folder, name)
            opened.append(_opened(file))
            for tensor in opened[-1].keys():  # noqa: SIM118  (it is no dict)
                if listed is not None and listed.get(tensor) != name:
                    raise CheckpointError(f"{file} holds {tensor}, which {folder / INDEX} does not look for there")
                found[tensor] = (name, _slice(file, opened[-1], tensor))
        lacking = sorted(set(listed or ()) - found.keys())
        if lacking and listed is not None:
            raise CheckpointError(
                f"{folder / listed[lacking[0]]} lacks {len(lacking)} tensors that {INDEX} names ({lacking[0]}, …)"
            )
        yield {tensor: part for tensor, (_, part) in found.items()}
    finally:
        for file in opened:
            file.__exit__(None, None, None)


def _indexed(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    if not os.path.lexists(file):
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}, and other formats are not read")
    listed = read_json(file).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{file} has no weight_map from tensors to files")
    return listed


def _inside(folder: Path, name: str) -> Path:
    """A file that lies in the folder, or is a link from a snapshot of the hub's cache into the blobs beside it."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or parts.suffix != ".safetensors":
        raise CheckpointError(f"{folder / INDEX} names {name!r}, which is no safetensors file of its folder")
    file = folder / parts
    real, home = file.resolve(), folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # huggingface_hub: of this model, or shared by all of the cache
        homes += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
    if not any(real.is_relative_to(place) for place in homes):
        raise CheckpointError(f"{file} leads out of its folder, to {real}; put the file itself there")
    return file


def _opened(file: Path) -> Any:
    _require_file(file)
    problem = "is damaged, or cut short, or no safetensors file; download it again"
    with file.open("rb") as stream, blamed_on(file, problem):
        # safetensors takes no path that is not UTF-8.
        path = file if os.fsencode(file).decode(errors="ignore") == str(file) else f"/proc/self/fd/{stream.fileno()}"
        return safe_open(path, framework="pt", device="cpu")


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is {'not a file' if os.path.lexists(file) else 'missing'}; download it again")
    with blamed_on(file, "cannot be read"), file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself: run git lfs pull, or download it")


def _slice(file: Path, opened: Any, tensor: str) -> Any:
    with blamed_on(file, f"is damaged at {tensor}"):
        part = opened.get_slice(tensor)
        if part.get_dtype() not in _FLOATS:
            raise CheckpointError(f"{file}: {tensor} is of type {part.get_dtype()}; weights are {', '.join(_FLOATS)}")
        return part


@torch.no_grad()
def check_finite(folder: Path, asr: nn.Module) -> None:
    """Refuse weights that hold NaN or infinity; one pass over memory, some 2 s for 2 billion in bf16 on a core.

    Raises:
        CheckpointError: naming the first of them.
    """
    for name, parameter in asr.named_parameters():
        if parameter.numel() and not all(bound.isfinite() for bound in torch.aminmax(parameter)):
            raise CheckpointError(f"weights in {folder} are damaged: {name} holds NaN or infinity")
