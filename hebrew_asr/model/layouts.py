"""The one map between the two layouts of Qwen3-ASR: names of weights, and what a config says.

*native* is transformers' own (``Qwen/Qwen3-ASR-1.7B-hf``); *thinker* is that of the original repository
(``Qwen/Qwen3-ASR-1.7B``), which qwen-asr and every vLLM read: names start with ``thinker.`` and the config is nested in
``thinker_config``. Weights are the same bits in both. The names are as in transformers' ``convert_qwen3_asr_to_hf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import Qwen3ASRConfig, Qwen3Config
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

PREFIXES = (
    ("model.multi_modal_projector.linear_1.", "thinker.audio_tower.proj1."),
    ("model.multi_modal_projector.linear_2.", "thinker.audio_tower.proj2."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("model.language_model.", "thinker.model."),
    ("lm_head.", "thinker.lm_head."),
)
"""Native and thinker beginning of a weight's name; the first that fits counts."""

AUDIO_KEYS = (
    *("num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", "dropout"),
    *("attention_dropout", "activation_function", "activation_dropout", "scale_embedding", "initializer_range"),
    *("n_window", "n_window_infer", "downsample_hidden_size", "output_dim"),
)
TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "attention_bias", "attention_dropout"),
)
"""What both layouts say of encoder and LLM, in the same words."""

LANGUAGES = (
    *("Chinese", "English", "Cantonese", "Arabic", "German", "French", "Spanish", "Portuguese", "Indonesian"),
    *("Italian", "Korean", "Russian", "Thai", "Vietnamese", "Japanese", "Turkish", "Hindi", "Malay", "Dutch"),
    *("Swedish", "Danish", "Finnish", "Polish", "Czech", "Filipino", "Persian", "Greek", "Romanian", "Hungarian"),
    "Macedonian",
)
"""``support_languages`` of the published config.json."""

_ROPE_THETA = 1e6
_MROPE_SHARE = 20 / 64
"""Share of the rotary pairs that height and width have each in the published config: [24, 20, 20] of 64."""


@dataclass(frozen=True)
class TokenIds:
    """Ids of the tokens that a config names."""

    end_of_text: int
    end_of_turn: int
    audio: int
    audio_start: int
    audio_end: int

    @classmethod
    def of(cls, tokenizer: Any) -> TokenIds:
        """By their names, in a tokenizer that ``load_tokenizer`` has checked."""
        names = ("<|endoftext|>", "<|im_end|>", "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
        return cls(*(tokenizer.convert_tokens_to_ids(name) for name in names))


def thinker_name(native: str) -> str:
    """A weight's name in the thinker layout.

    Raises:
        KeyError: a native Qwen3-ASR has no such weight.
    """
    for before, after in PREFIXES:
        if native.startswith(before):
            return after + native.removeprefix(before)
    raise KeyError(native)


def native_key_mapping() -> dict[str, str]:
    """``key_mapping`` of ``from_pretrained`` for weights in the thinker layout; applied in order."""
    return {rf"^{re.escape(after)}": before for before, after in PREFIXES}


def native_config(values: Mapping[str, Any]) -> Qwen3ASRConfig:
    """The native config of what a thinker folder's config.json says.

    Raises:
        KeyError, ValueError and what transformers raises: it describes no model.
    """
    described = values["thinker_config"]
    audio, text = described["audio_config"], described["text_config"]
    tied = bool(text.get("tie_word_embeddings", True))
    rope = {"rope_type": "default", "rope_theta": text.get("rope_theta", _ROPE_THETA)}
    return Qwen3ASRConfig(
        audio_config=Qwen3ASREncoderConfig(**taken(audio, AUDIO_KEYS)),
        text_config=Qwen3Config(**taken(text, TEXT_KEYS), tie_word_embeddings=tied, rope_parameters=rope),
        audio_token_id=described["audio_token_id"],
        pad_token_id=values.get("pad_token_id", 151643),
        eos_token_id=[151643, 151645],
        tie_word_embeddings=tied,  # the top-level flag decides natively, the text one in qwen-asr: set both
    )


def thinker_values(config: Qwen3ASRConfig, ids: TokenIds, *, tied: bool, dtype: str) -> dict[str, Any]:
    """config.json of the thinker layout.

    Args:
        config: native.
        ids: of the tokenizer beside it.
        tied: whether the head is the input embedding. qwen-asr and vLLM go by this flag alone: said of a head of its
            own, it would be thrown away without a word.
        dtype: of the weights, such as ``bfloat16``.
    """
    encoder_config: Any = config.audio_config
    audio, text = encoder_config.to_dict(), config.get_text_config(decoder=True).to_dict()
    encoder = taken(audio, AUDIO_KEYS) | {
        "model_type": "qwen3_asr_audio_encoder",
        "max_source_positions": 1500,
        "conv_chunksize": 500,
        "num_hidden_layers": audio["encoder_layers"],
    }
    decoder = taken(text, TEXT_KEYS) | {
        "model_type": "qwen3_asr_text",
        "use_cache": True,
        "tie_word_embeddings": tied,
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "rope_scaling": {
            "interleaved": True,
            "mrope_interleaved": True,
            "mrope_section": mrope_section(text["head_dim"]),
            "rope_type": "default",
            "type": "default",
        },
    }
    architectures = ["Qwen3ASRForConditionalGeneration"]
    thinker = {
        "architectures": architectures,
        "model_type": "qwen3_asr_thinker",
        "dtype": dtype,
        "initializer_range": config.initializer_range,
        "audio_config": encoder,
        "text_config": decoder,
        "audio_token_id": ids.audio,
        "audio_start_token_id": ids.audio_start,
        "audio_end_token_id": ids.audio_end,
        "user_token_id": 872,  # as published; "user" in Qwen's vocabulary
    }
    return {
        "architectures": architectures,
        "model_type": "qwen3_asr",
        "dtype": dtype,
        "eos_token_id": ids.end_of_turn,
        "pad_token_id": ids.end_of_text,
        "support_languages": [*LANGUAGES, "Hebrew"],
        "tie_word_embeddings": tied,
        "thinker_config": thinker,
        # transformers 4.57.6 gives the tokenizer of a local folder Mistral's regex, with which other tokens come out,
        # unless the folder says that 4.57.2 or older wrote it, or 5.
        "transformers_version": transformers.__version__,
    }


def mrope_section(head_dim: int) -> list[int]:
    """Rotary pairs for time, height and width; vLLM wants them to add up to ``head_dim / 2``.

    A recording has no height and width, all three positions are the same, and so any division computes the same.
    """
    half = head_dim // 2
    side = int(half * _MROPE_SHARE)
    return [half - 2 * side, side, side]


def taken(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """What is known by name, and nothing else."""
    return {key: values[key] for key in keys if key in values}
