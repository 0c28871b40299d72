"""How large a Qwen3-ASR is, by its config alone: every weight by name and shape, without torch and without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.errors import UsageError
from hebrew_asr.files import from_json

Shapes = dict[str, tuple[int, ...]]
"""By name, in the order of ``named_parameters``; a tied head is the input embedding."""

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class ModelSizes:
    """The numbers of a config.json that shapes follow from, under their names there; defaults are transformers'."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    downsample_hidden_size: int = 480
    num_mel_bins: int = 128
    n_window: int = 50
    n_window_infer: int = 800
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def of(cls, config: Any) -> ModelSizes:
        """The sizes in a native ``Qwen3ASRConfig``."""
        parts = (config.audio_config, config.get_text_config(decoder=True))
        own = {"tie_word_embeddings": bool(config.tie_word_embeddings)}
        return cls(**own, **{key: getattr(part, key) for part, keys in zip(parts, _KEYS, strict=True) for key in keys})


AUDIO_SIZES = (
    *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "output_dim"),
    *("downsample_hidden_size", "num_mel_bins", "n_window", "n_window_infer"),
)
TEXT_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size"),
)
_KEYS = (AUDIO_SIZES, (*TEXT_SIZES, "attention_bias"))
_MOST = 1 << 20
"""More than any number of a Qwen3-ASR that is one."""
_ENCODERS = {"1.7B": (1024, 24, 16, 4096, 2048), "0.6B": (896, 18, 14, 3584, 1024)}
_DECODERS = {"1.7B": (2048, 6144, 28, 16, 8, 128, 151_936), "0.6B": (1024, 3072, 28, 16, 8, 128, 151_936)}
PUBLISHED = {
    f"Qwen/Qwen3-ASR-{name}{layout}": ModelSizes(*_ENCODERS[name], *_DECODERS[name])
    for name in _ENCODERS
    for layout in ("", "-hf")
}
"""By hub id, as their public config.json files have it."""


def sizes_at(path: str) -> ModelSizes:
    """Sizes of a local model folder, or of a published model by its hub id; nothing is downloaded.

    Raises:
        UsageError: ``path`` is neither.
        CheckpointError: the folder is not one of a Qwen3-ASR model.
    """
    folder = Path(path)
    if not folder.is_dir():
        if path in PUBLISHED:
            return PUBLISHED[path]
        raise UsageError(
            f"the sizes of model {path!r} are not known here; give a local folder with its config.json, "
            f"or one of {', '.join(PUBLISHED)}"
        )
    found = _written_out(folder / "config.json")
    if found is None:  # transformers knows what is left out, and what is wrong is told in words
        from hebrew_asr.model.folder import read_config

        found = ModelSizes.of(read_config(folder)[0])
    return found


def _written_out(file: Path) -> ModelSizes | None:
    """Sizes that a config.json gives in so many numbers, of either layout; None where anything is missing or odd."""
    try:
        values = from_json(file.read_text(encoding="utf-8"))
        described = values.get("thinker_config", values)
        audio, text = described["audio_config"], described["text_config"]
        tied = values["tie_word_embeddings"] if described is values else text.get("tie_word_embeddings", True)
        numbers = {key: audio[key] for key in AUDIO_SIZES}
        numbers |= {key: text[key] for key in TEXT_SIZES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if values.get("model_type") != "qwen3_asr" or any("quantization_config" in part for part in (values, described)):
        return None
    if not all(type(number) is int and 1 <= number <= _MOST for number in numbers.values()):
        return None
    return ModelSizes(**numbers, attention_bias=text.get("attention_bias") is True, tie_word_embeddings=bool(tied))


def weight_shapes(sizes: ModelSizes) -> Shapes:
    """Every weight of the native model."""
    return dict(_weights(sizes))


def _weights(sizes: ModelSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden, channels = sizes.d_model, sizes.hidden_size, sizes.downsample_hidden_size
    tower, language_model = "model.audio_tower", "model.language_model"
    for layer in range(sizes.encoder_layers):
        yield from _encoder_layer(sizes, f"{tower}.layers.{layer}")
    yield from _with_bias(f"{tower}.ln_post", (width,))
    yield from _with_bias(f"{tower}.conv2d1", (channels, 1, 3, 3))
    yield from _with_bias(f"{tower}.conv2d2", (channels, channels, 3, 3))
    yield from _with_bias(f"{tower}.conv2d3", (channels, channels, 3, 3))
    rows = sizes.num_mel_bins
    for _ in range(3):
        rows = (rows + 1) // 2
    yield f"{tower}.conv_out.weight", (width, channels * rows)
    yield EMBEDDING, (sizes.vocab_size, hidden)
    for layer in range(sizes.num_hidden_layers):
        yield from _decoder_layer(sizes, f"{language_model}.layers.{layer}")
    yield f"{language_model}.norm.weight", (hidden,)
    yield from _with_bias("model.multi_modal_projector.linear_1", (width, width))
    yield from _with_bias("model.multi_modal_projector.linear_2", (sizes.output_dim, width))
    if not sizes.tie_word_embeddings:
        yield HEAD, (sizes.vocab_size, hidden)


def _encoder_layer(sizes: ModelSizes, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = sizes.d_model, sizes.encoder_ffn_dim
    for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
        yield from _with_bias(f"{name}.self_attn.{projection}", (width, width))
    yield from _with_bias(f"{name}.self_attn_layer_norm", (width,))
    yield from _with_bias(f"{name}.fc1", (inner, width))
    yield from _with_bias(f"{name}.fc2", (width, inner))
    yield from _with_bias(f"{name}.final_layer_norm", (width,))


def _decoder_layer(sizes: ModelSizes, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    queries, keys = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    for projection, shape in (attention | {"o_proj": (hidden, queries)}).items():
        weight_and_bias = list(_with_bias(f"{name}.self_attn.{projection}", shape))
        yield from weight_and_bias if sizes.attention_bias else weight_and_bias[:1]
    yield from ((f"{name}.self_attn.{norm}.weight", (sizes.head_dim,)) for norm in ("q_norm", "k_norm"))
    yield from ((f"{name}.mlp.{part}.weight", (inner, hidden)) for part in ("gate_proj", "up_proj"))
    yield f"{name}.mlp.down_proj.weight", (hidden, inner)
    yield from ((f"{name}.{norm}.weight", (hidden,)) for norm in ("input_layernorm", "post_attention_layernorm"))


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
