"""Load Qwen3-ASR from either checkpoint layout, strictly: a missing or unexpected weight is an error, not a random one.

transformers loads a folder in the thinker layout (:mod:`hebrew_asr.model.layouts`) without an error and with random
weights, so its own report is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Tokenizer, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.utils import logging as transformers_logging

from hebrew_asr.config.recipe import Model
from hebrew_asr.errors import CheckpointError, EnvironmentProblem, UsageError, first_line
from hebrew_asr.model.folder import (
    blamed_on,
    check_finite,
    check_tokenizer_files,
    least_weights,
    open_weights,
    read_config,
    read_generation_config,
)
from hebrew_asr.model.layouts import native_key_mapping
from hebrew_asr.text.prompt import ASR_TEXT, AUDIO_PAD, END_OF_TURN

transformers_logging.disable_progress_bar()  # one bar per rank would tear the console apart


def local_folder(path: str, *, weights: bool = True) -> Path:
    """The folder of a model: ``path`` itself, or a hub snapshot, downloaded on first use.

    Raises:
        UsageError: there is no such folder, and no repository of the hub can have this name.
        EnvironmentProblem: ``path`` is no folder and the hub cannot give it.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        if "/" not in path:  # the hub has such names for a few old models of others
            raise HFValidationError
        return Path(snapshot_download(path, allow_patterns=patterns))
    except HFValidationError as error:
        raise UsageError(
            f"model {path}: there is no such folder, and a model of the hub is called owner/name"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EnvironmentProblem(
            f"model {path!r} is not a local folder and could not be fetched from the hub ({first_line(error)}); "
            f"check the name, the network, and HF_TOKEN if the model is gated"
        ) from error


def hub_commit(path: str) -> str | None:
    """The commit of the hub's snapshot that a model was loaded from; None for any other folder."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, local_files_only=True))
    folder = folder.resolve()
    return folder.name if folder.parent.name == "snapshots" else None


def load_model(model: Model, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen3ASRForConditionalGeneration:
    """Build the native model with its weights.

    Args:
        model: where from; ``random_weights`` draws them instead.
        seed: for random weights.
        dtype: of the weights in memory. Training keeps fp32 masters of its own; fp32 here keeps a fp32 base exact.

    Raises:
        CheckpointError: the folder is not one of a whole Qwen3-ASR (see :mod:`hebrew_asr.model.folder`), or its weights
            are missing, unexpected, of another shape, or not finite; the message names them.
        EnvironmentProblem: the hub cannot give the model.
    """
    folder = local_folder(model.path, weights=not model.random_weights)
    config, thinker = read_config(folder)
    if model.random_weights:
        torch.manual_seed(seed)
        with blamed_on(folder / "config.json", "describes a model that cannot be built"):
            return build_model(config, dtype)
    options: dict[str, Any] = {"key_mapping": native_key_mapping()} if thinker else {}
    with open_weights(folder) as weights:
        held = sum(math.prod(part.get_shape()) for part in weights.values())
        if least_weights(config) > 2 * held:  # what is missing would be drawn, whatever its size, and then refused
            raise CheckpointError(f"{folder} holds {held:,} weights, and its config.json describes a far larger model")
        # Given the tensors, transformers looks for no other file in the folder: no pickle, no adapter, no other model.
        with blamed_on(folder, "holds a model that cannot be loaded"), _unreported():
            loaded: Any = Qwen3ASRForConditionalGeneration.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    asr, report = loaded
    _check_report(folder, report, tied=bool(config.tie_word_embeddings))
    if config.tie_word_embeddings and not has_tied_head(asr):  # transformers ties them only where they are equal
        raise CheckpointError(
            f"{folder} holds a head of its own (lm_head.weight differs from the input embedding), and its config.json "
            f"says that they are one: other programs would throw the head away. If the head was trained apart, set "
            f"tie_word_embeddings to false there, within text_config too"
        )
    check_finite(folder, asr)
    asr.generation_config = read_generation_config(folder) or asr.generation_config
    return asr


def build_model(config: Qwen3ASRConfig, dtype: torch.dtype) -> Qwen3ASRForConditionalGeneration:
    """A native model with weights drawn from torch's generator, on torch's default device."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a cast afterwards would round the rotary frequencies too
    try:
        return Qwen3ASRForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(previous)


def has_tied_head(asr: Any) -> bool:
    """Whether the head is the input embedding itself."""
    return asr.get_output_embeddings().weight is asr.get_input_embeddings().weight


@contextmanager
def _unreported() -> Iterator[None]:
    """Without the table that transformers prints of weights that do not fit: ``_check_report`` says it in a line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


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
        CheckpointError: the folder has no tokenizer, one without Qwen3-ASR's special tokens, or another model's.
    """
    folder = local_folder(path, weights=False)
    config, _ = read_config(folder)
    check_tokenizer_files(folder)
    with blamed_on(folder, "holds no usable tokenizer"):
        tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder)  # and not of the class that the folder names
        needed = ["<|audio_start|>", AUDIO_PAD, "<|audio_end|>", "<|im_start|>", END_OF_TURN, ASR_TEXT]
        ids = {token: tokenizer(token, add_special_tokens=False)["input_ids"] for token in needed}
    lacking = [token for token in needed if len(ids[token]) != 1]
    if lacking:
        raise CheckpointError(f"the tokenizer in {folder} has no {', '.join(lacking)}; is it Qwen3-ASR's?")
    size = config.get_text_config(decoder=True).vocab_size
    if len(tokenizer) > size or ids[AUDIO_PAD] != [config.audio_token_id]:
        raise CheckpointError(
            f"the tokenizer in {folder} is of another model than its config.json: {len(tokenizer):,} tokens for a "
            f"vocabulary of {size:,}, and {AUDIO_PAD} is number {ids[AUDIO_PAD][0]}, not {config.audio_token_id}"
        )
    return tokenizer
