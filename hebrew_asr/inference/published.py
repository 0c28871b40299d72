"""One model as two folders, checked before they appear: ``hf/`` for transformers, ``qwen_asr/`` for other programs.

No single folder loads everywhere. The files are listed with their hashes in ``SHA256SUMS``, as ``sha256sum -c`` reads
it; the model card is not, so that it may be edited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.config.recipe import Model
from hebrew_asr.errors import CheckpointError, EnvironmentProblem
from hebrew_asr.files import sha256_of, whole_folder
from hebrew_asr.inference.export import write_cutting, write_native
from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.inference.thinker import write_thinker
from hebrew_asr.model.folder import open_weights, read_config, read_generation_config
from hebrew_asr.model.layouts import thinker_name
from hebrew_asr.model.load import has_tied_head, load_model, load_tokenizer

HF, THINKER, SUMS, CARD = "hf", "qwen_asr", "SHA256SUMS", "README.md"
_TEXTS = ("language Hebrew<asr_text>שלום, עולם! צה״ל ב־2024 (OK)", "I'm 1,234 <|im_end|>\n\n  \U0001f600 בְּרֵאשִׁית")
_TOKENS = 8
_LOADED = (".bin", ".jinja", ".json", ".model", ".pt", ".pth", ".py", ".safetensors", ".txt")
"""Suffixes of files that programs look for in a model's folder, whether or not they were written with it."""


def export(
    folder: Path, asr: Any, tokenizer: Any, cutting: Cutting, cards: dict[str, str], base: Path | None = None
) -> None:
    """Write both folders and check them; ``folder`` appears when all is right.

    Args:
        folder: does not exist, or is empty.
        asr: native model on the host, in the precision that is to be written.
        tokenizer: of the model.
        cutting: likewise.
        cards: text of ``README.md`` by folder.
        base: see :func:`hebrew_asr.inference.thinker.write_thinker`.

    Raises:
        CheckpointError: the model cannot be written so that others load the same, or was not.
        EnvironmentProblem: the disk.
    """
    if asr.config.tie_word_embeddings and not has_tied_head(asr):
        raise CheckpointError("the model has a head of its own, and its config says that it is the input embedding")
    try:
        with whole_folder(folder) as temporary:
            for name in (HF, THINKER):
                (temporary / name).mkdir()
            write_native(temporary / HF, asr, tokenizer)
            write_thinker(temporary / THINKER, asr, tokenizer, base)
            for name in (HF, THINKER):
                write_cutting(temporary / name, cutting)
                sums = (f"{sha256_of(file)}  {file.name}\n" for file in sorted((temporary / name).iterdir()))
                (temporary / name / SUMS).write_text("".join(sums), encoding="utf-8")
                (temporary / name / CARD).write_text(cards[name], encoding="utf-8")
            _check_layouts(temporary, asr, tokenizer)
            _check_greedy(temporary / HF, asr)
    except OSError as error:
        raise EnvironmentProblem(
            f"the export could not be written to {folder} ({error.strerror}); nothing is left of it"
        ) from error


def check_export(folder: Path) -> None:
    """Check what :func:`export` wrote, perhaps long ago or copied from elsewhere.

    Raises:
        CheckpointError: naming the file that is missing or differs, or what the two folders do not share.
    """
    if folder.name in (HF, THINKER) and (folder / SUMS).is_file():
        raise CheckpointError(f"{folder} is one of the two folders of an export: give {folder.parent}, to check both")
    for name in (HF, THINKER):
        _check_sums(folder / name)
    native = str(folder / HF)
    _check_layouts(folder, load_model(Model(native), dtype=stored_dtype(folder / HF)), load_tokenizer(native))


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that a model folder's weights are written in, the widest where they differ.

    Raises:
        CheckpointError: the folder holds no weights that can be read.
    """
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open_weights(folder) as weights:
        found = {part.get_dtype() for part in weights.values()}
    return kinds[next(kind for kind in kinds if kind in found)] if len(found) == 1 else torch.float32


def _check_sums(folder: Path) -> None:
    try:
        listed = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no readable {SUMS}: it is no export, or not a whole one") from error
    names = {SUMS, CARD}
    for line in listed:
        digest, _, name = line.partition("  ")
        file = folder / name
        if not name or Path(name).name != name:
            raise CheckpointError(f"{folder / SUMS} is damaged: {line[:80]!r} names no file beside it")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; export again")
        if sha256_of(file) != digest:
            raise CheckpointError(f"{file} is damaged: its hash differs from what {SUMS} says; export again")
        names.add(name)
    for file in sorted(folder.iterdir()):
        if file.name not in names and file.suffix in _LOADED:
            raise CheckpointError(
                f"{file} is not in {SUMS}: one of the two was changed since; remove what was added, or export again"
            )


def _check_layouts(folder: Path, asr: Any, tokenizer: Any) -> None:
    """Both folders load as this program loads any model, to the same bits and the same tokens."""
    expected = dict(asr.named_parameters())
    with open_weights(folder / THINKER) as weights:
        names = {thinker_name(name) for name in asr.state_dict()}
        if names != set(weights):
            odd = sorted(names ^ set(weights))
            raise CheckpointError(f"{folder / THINKER} lacks or adds weights: {', '.join(odd[:3])}")
    for name in (HF, THINKER):
        place = folder / name
        config, _ = read_config(place)
        if bool(config.tie_word_embeddings) != bool(asr.config.tie_word_embeddings):
            raise CheckpointError(f"{place / 'config.json'} says otherwise whether the head is the input embedding")
        loaded = dict(load_model(Model(str(place)), dtype=asr.dtype).named_parameters())
        for weight in sorted(expected):
            if weight not in loaded or not torch.equal(loaded[weight], expected[weight]):
                raise CheckpointError(f"{place} does not hold the model's {weight}; export again")
        del loaded
        _check_tokens(place, tokenizer)
        said = read_generation_config(place) or GenerationConfig()
        if not said.max_new_tokens or len(said.eos_token_id or ()) < 2:  # type: ignore[arg-type]
            raise CheckpointError(f"{place / 'generation_config.json'} does not say where to stop; export again")


def _check_tokens(folder: Path, tokenizer: Any) -> None:
    other = load_tokenizer(str(folder))
    for text in _TEXTS:
        if other(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise CheckpointError(f"the tokenizer in {folder} makes other tokens of {text!r} than the model's")


@torch.inference_mode()
def _check_greedy(folder: Path, asr: Any) -> None:
    """transformers' own classes, used as its documentation shows, say of a sound what the model does."""
    seconds = np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    sound = (0.1 * np.sin(2 * np.pi * 200 * seconds * (1 + seconds))).astype(np.float32)
    processor: Any = AutoProcessor.from_pretrained(folder)
    theirs: Any = AutoModelForMultimodalLM.from_pretrained(folder, dtype=asr.dtype).eval()
    inputs = processor.apply_transcription_request(audio=[sound]).to(theirs.dtype)
    training = asr.training
    ours = asr.eval()
    answers = [model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False) for model in (ours, theirs)]
    asr.train(training)
    if not torch.equal(*answers):
        raise CheckpointError(f"transformers says other tokens with {folder} than the model does")
