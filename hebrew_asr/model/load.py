"""Load Qwen3-ASR from either checkpoint layout, strictly: a missing or unexpected weight is an error, not a random one.

Layouts: *native* (``Qwen/Qwen3-ASR-1.7B-hf``; transformers' own names) and *thinker* (``Qwen/Qwen3-ASR-1.7B``; names
start with ``thinker.``, config nested in ``thinker_config``). transformers loads a thinker folder without an error and
with random weights, so its own report is checked here. The renaming follows ``convert_qwen3_asr_to_hf.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.utils import logging as transformers_logging

from hebrew_asr.errors import CheckpointError, EnvironmentProblem, first_line
from hebrew_asr.recipe import Model

transformers_logging.disable_progress_bar()  # one bar a rank would tear the console apart

# Thinker name -> native name, applied in order.
THINKER_TO_NATIVE = {
    r"^thinker\.audio_tower\.proj1\.": "model.multi_modal_projector.linear_1.",
    r"^thinker\.audio_tower\.proj2\.": "model.multi_modal_projector.linear_2.",
    r"^thinker\.audio_tower\.": "model.audio_tower.",
    r"^thinker\.model\.": "model.language_model.",
    r"^thinker\.lm_head\.": "lm_head.",
}
NUM_WEIGHTS_1_7B = 2_038_052_480

_AUDIO_KEYS = (
    *("num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", "dropout"),
    *("attention_dropout", "activation_function", "activation_dropout", "scale_embedding", "initializer_range"),
    *("n_window", "n_window_infer", "downsample_hidden_size", "output_dim"),
)
_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "attention_bias", "attention_dropout"),
)


def local_folder(path: str, *, weights: bool = True) -> Path:
    """The folder of a model: ``path`` itself, or a hub snapshot, downloaded on first use.

    Raises:
        EnvironmentProblem: ``path`` is no folder and the hub cannot give it.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = None if weights else ["*.json", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EnvironmentProblem(
            f"model {path!r} is not a local folder and could not be fetched from the hub ({first_line(error)}); "
            f"check the name, the network, and HF_TOKEN if the model is gated"
        ) from error


def read_config(folder: Path) -> tuple[Qwen3ASRConfig, bool]:
    """The model's config in native form, and whether the folder is in the thinker layout.

    Raises:
        CheckpointError: no config.json, or one of another model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder of a Qwen3-ASR model")
    values = json.loads(file.read_text(encoding="utf-8"))
    if values.get("model_type") != "qwen3_asr":
        raise CheckpointError(f"{file} describes a {values.get('model_type')!r} model, not qwen3_asr")
    if "thinker_config" not in values:
        return Qwen3ASRConfig.from_pretrained(folder), False
    thinker = values["thinker_config"]
    audio = {key: thinker["audio_config"][key] for key in _AUDIO_KEYS if key in thinker["audio_config"]}
    text = {key: thinker["text_config"][key] for key in _TEXT_KEYS if key in thinker["text_config"]}
    rope_theta = thinker["text_config"].get("rope_theta", 1e6)
    tied = bool(thinker["text_config"].get("tie_word_embeddings", True))
    text |= {"tie_word_embeddings": tied, "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta}}
    config = Qwen3ASRConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=thinker["audio_token_id"],
        pad_token_id=values.get("pad_token_id", 151643),
        eos_token_id=[151643, 151645],
        tie_word_embeddings=tied,  # the top-level flag decides natively, the text one in qwen-asr: set both
    )
    return config, True


def load_model(model: Model, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen3ASRForConditionalGeneration:
    """Build the native model with its weights.

    Args:
        model: where from; ``random_weights`` draws them instead.
        seed: for random weights.
        dtype: of the weights in memory. Training keeps fp32 masters of its own; fp32 here keeps a fp32 base exact.

    Raises:
        CheckpointError: weights are missing, unexpected or of another shape; the message names them.
        EnvironmentProblem: the hub cannot give the model.
    """
    folder = local_folder(model.path, weights=not model.random_weights)
    config, thinker = read_config(folder)
    if model.random_weights:
        torch.manual_seed(seed)
        return build_model(config, dtype)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no *.safetensors weights; use model.random_weights=true to draw them")
    options: dict[str, Any] = {"key_mapping": THINKER_TO_NATIVE} if thinker else {}
    loaded: Any = Qwen3ASRForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    asr, report = loaded
    _check_report(folder, report, tied=bool(config.tie_word_embeddings))
    return asr


def build_model(config: Qwen3ASRConfig, dtype: torch.dtype) -> Qwen3ASRForConditionalGeneration:
    """A native model with weights drawn from torch's generator, on torch's default device."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a cast afterwards would round the rotary frequencies too
    try:
        return Qwen3ASRForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(previous)


def _check_report(folder: Path, report: dict[str, Any], *, tied: bool) -> None:
    missing = sorted(set(report.get("missing_keys", ())) - ({"lm_head.weight"} if tied else set()))
    unexpected = sorted(set(report.get("unexpected_keys", ())))
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in report.get("mismatched_keys", ()))
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if names
    ]
    if problems:
        raise CheckpointError(f"weights in {folder} do not fit the model: {'; '.join(problems)}")


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder, checked for the tokens that the prompt is made of.

    Raises:
        CheckpointError: the folder has no tokenizer, or one without Qwen3-ASR's special tokens.
    """
    folder = local_folder(path, weights=False)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {first_line(error)}") from error
    needed = ["<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<|im_start|>", "<|im_end|>", "<asr_text>"]
    lacking = [token for token in needed if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1]
    if lacking:
        raise CheckpointError(f"the tokenizer in {folder} has no {', '.join(lacking)}; is it Qwen3-ASR's?")
    return tokenizer
