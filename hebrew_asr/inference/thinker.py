"""Write a model in the original repository's layout, for qwen-asr, vLLM and others that read no other.

They read files that transformers 5 does not write any more: vocabulary and merges apart, the extra tokens as a
dictionary, the chat template and the feature extractor in JSON files of their own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import as_json
from hebrew_asr.inference.export import generation_config
from hebrew_asr.model.folder import WEIGHTS
from hebrew_asr.model.layouts import TokenIds, thinker_name, thinker_values
from hebrew_asr.model.load import load_tokenizer
from hebrew_asr.text.prompt import END_OF_TURN

_NEEDED = ("vocab.json", "merges.txt", "tokenizer_config.json")
_SIDE_FILES = (*_NEEDED, "added_tokens.json", "special_tokens_map.json", "chat_template.json")
_PREPROCESSOR = {
    "chunk_length": 30,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "Qwen3ASRProcessor",
    "return_attention_mask": True,
}
"""preprocessor_config.json of the published model."""
_CHAT_TEMPLATE = """\
{%- set ns = namespace(system='', audio='') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' and message.content is string -%}
    {%- set ns.system = ns.system + message.content -%}
  {%- elif message.content is not string -%}
    {%- for part in message.content -%}
      {%- if part.type == 'audio' or ('audio' in part) or ('audio_url' in part) -%}
        {%- set ns.audio = ns.audio + '<|audio_start|><|audio_pad|><|audio_end|>' -%}
      {%- elif message.role == 'system' and part.type == 'text' -%}
        {%- set ns.system = ns.system + part.text -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n<|im_start|>user\\n' + ns.audio + '<|im_end|>\\n' -}}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""Renders what the published template does: system turn, audio, and no answer. vLLM and transformers 4 know no
``generation`` block, which ours for the native layout has."""


def write_thinker(folder: Path, asr: Any, tokenizer: Any, base: Path | None = None) -> None:
    """Write weights, config, generation config, tokenizer and preprocessor of the thinker layout.

    Args:
        folder: exists.
        asr: native model on the host; the head is written even where it is the input embedding, as published.
        tokenizer: of the model.
        base: a folder in the thinker layout whose tokenizer files are copied, if its tokens are the same; without it
            they are written from ``tokenizer``.

    Raises:
        CheckpointError: ``base`` has other tokens.
        OSError or safetensors.SafetensorError: the disk.
    """
    weights = asr.state_dict()
    head, embedding = weights["lm_head.weight"], weights["model.language_model.embed_tokens.weight"]
    tied = torch.equal(head, embedding)
    named = {thinker_name(name): tensor.contiguous() for name, tensor in weights.items()}
    named["thinker.lm_head.weight"] = head.clone()  # safetensors writes no tensor twice
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    dtype = str(embedding.dtype).removeprefix("torch.")
    config = thinker_values(asr.config, TokenIds.of(tokenizer), tied=tied, dtype=dtype)
    (folder / "config.json").write_text(as_json(config), encoding="utf-8")
    generation_config(asr, tokenizer).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(as_json(_PREPROCESSOR), encoding="utf-8")
    (folder / "chat_template.json").write_text(as_json({"chat_template": _CHAT_TEMPLATE}), encoding="utf-8")
    if base is None:
        _write_tokenizer(folder, tokenizer)
    else:
        _copy_tokenizer(folder, tokenizer, base)


def has_tokenizer_files(folder: Path) -> bool:
    """Whether a folder holds what :func:`write_thinker` copies from a base."""
    return all((folder / name).is_file() for name in _NEEDED)


def _copy_tokenizer(folder: Path, tokenizer: Any, base: Path) -> None:
    if load_tokenizer(str(base)).get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(f"the tokenizer in {base} has other tokens than the model's; give the base it came from")
    for name in _SIDE_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """The form of transformers 4, from what a tokenizer of transformers 5 holds."""
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    added = held["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in held["model"]["merges"]]
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    values = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): {key: token[key] for key in fields} for token in added},
        "additional_special_tokens": [name for name in special if name != tokenizer.pad_token],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "extra_special_tokens": {
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
            "audio_token": "<|audio_pad|>",
        },
        "model_max_length": 131072,
        "pad_token": tokenizer.pad_token,
        "processor_class": "Qwen3ASRProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(as_json(values), encoding="utf-8")
    vocabulary = json.dumps(held["model"]["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
