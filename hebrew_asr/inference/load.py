"""A model folder ready to transcribe with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hebrew_asr.errors import CheckpointError, UsageError, first_line
from hebrew_asr.files import such_as_runs, values_if_readable
from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.inference.transcriber import Decoding, Transcriber
from hebrew_asr.languages import language_name
from hebrew_asr.logs import log

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_transcriber(model: str, language: str, *, device: str = "auto", dtype: str = "auto") -> Transcriber:
    """Load a model for inference.

    Args:
        model: folder or hub id, either layout; of the folder of a run, its ``final/``; of an export, its ``hf/``.
        language: name or code of the language that is spoken, or ``auto`` to let the model name it.
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a GPU where there is one.
        dtype: one of ``DTYPES``; ``auto`` is bf16 on a GPU, fp32 on a CPU.

    Raises:
        CheckpointError: the folder is no whole Qwen3-ASR model, nor a run with one.
        UsageError: there is no such language, device or dtype.
    """
    import torch

    from hebrew_asr.config.recipe import Model
    from hebrew_asr.model.load import load_model, load_tokenizer, local_folder

    name, place = language_name(language), _device(device)
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    kind = ("float32" if place.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    folder = local_folder(model_folder(model))
    tokenizer = load_tokenizer(str(folder))
    asr: Any = load_model(Model(path=str(folder)), dtype=getattr(torch, kind))
    return Transcriber(asr.to(place).eval(), tokenizer, Decoding(language=name), cutting_of(folder))


def devices_of(asked: str) -> list[str]:
    """The devices that are named, with commas between them; all GPUs for ``auto``, and the CPU where there are none.

    Raises:
        UsageError: one cannot be used.
    """
    import torch

    if asked == "auto":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    return [str(_device(name.strip())) for name in asked.split(",")]


def _device(asked: str) -> Any:
    import torch

    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UsageError(
            f"device {asked!r} cannot be used here ({first_line(error)}); there is {', '.join(there)}"
        ) from error
    return device


def model_folder(model: str) -> str:
    """``model`` itself, the ``final/`` of the run that it is the folder of, or the ``hf/`` of the export.

    Raises:
        CheckpointError: it is a run that has no ``final/`` yet, a checkpoint, or a folder of runs.
    """
    folder = Path(model)
    if not folder.is_dir() or (folder / "config.json").exists():
        return model
    from hebrew_asr.inference.published import HF

    if (inside := next((folder / name for name in ("final", HF) if (folder / name).is_dir()), None)) is not None:
        return str(inside)
    if (folder / "COMPLETE.json").exists():
        raise CheckpointError(
            f"{model} is a checkpoint, which holds what trained and nothing else: `hebrew-asr export "
            f"{shlex.quote(model)} --out DIR` makes a model of it"
        )
    if (folder / "recipe.json").exists():
        raise CheckpointError(
            f"{model} is a run without a final/ in it: training has not ended; wait, resume it, or export one of "
            f"{folder / 'checkpoints'}"
        )
    if runs := such_as_runs(folder):
        raise CheckpointError(f"{model} holds runs and is no model: give the folder of one{runs}")
    return model


def cutting_of(folder: Path) -> Cutting:
    """Pieces for a model: as its folder says, or the run that it lies in; the defaults where neither says it."""
    from hebrew_asr.inference.export import PIECES

    path = folder / PIECES
    said = values_if_readable(path)
    if not said:
        if path.exists():
            log.warning("%s is damaged: recordings are cut as for a model without one", path)
        return cutting_of_run(folder.parent)
    return _cutting(*(_number(said.get(name)) for name in ("max_s", "typical_s", "whole_s")))


def cutting_of_run(folder: Path) -> Cutting:
    """Pieces like the clips that a run trains on."""
    recipe, run = (values_if_readable(folder / name) for name in ("recipe.json", "run.json"))
    data = recipe.get("data")
    most = _number(data.get("max_duration_s") if isinstance(data, dict) else None)
    clips, hours, longest = (_number(run.get(f"train_{name}")) for name in ("clips", "hours", "longest_s"))
    return _cutting(most, hours * 3600 / clips if clips else 0.0, longest)


def _cutting(max_s: float, typical_s: float, whole_s: float) -> Cutting:
    """Within what the encoder hears; 0 is unknown."""
    default = Cutting()
    max_s = min(max(max_s, 1.0), default.max_s) if max_s else default.max_s
    typical_s = min(max(typical_s, 1.0) if typical_s else default.typical_s, max_s / 2)
    return Cutting(max_s, typical_s, min(whole_s or 3 * typical_s, max_s))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0
