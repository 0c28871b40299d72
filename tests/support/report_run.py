"""A run directory as training writes it, small enough to check by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.text.prompt import build_target
from hebrew_asr.text.wer import count_errors

SENTENCES = {
    "a": "אבא קורא ספר בבית",
    "b": "אמא כותבת",
    "c": "הילד אוכל תפוח אדום",
    "d": "דני הולך לים כל בוקר",
}
HEARD = {
    0: {"a": "", "b": "בית בית בית בית בית בית", "c": "הילד", "d": "דני דני"},
    4: {"a": "אבא קורא ספר", "b": "אמא קותבת", "c": "הילד אכל תפוח אדום", "d": "דני הולך לים כל בוקר"},
    8: {"a": "אבא קורא ספר בבית", "b": "אמא קותבת", "c": "הילד אוכל תפוח אדום", "d": "דני לא הולך לים כל"},
}
WEIGHTS = {"B": {"projector": 20, "head": 30}, "A": {"projector": 20, "head": 30, "audio_top": 25}}


def train_record(step: int, **changed: Any) -> dict[str, Any]:
    phase = "B" if step <= 4 else "A"
    rates = dict.fromkeys(WEIGHTS[phase], 1e-4)
    record = {"event": "train", "step": step, "epoch": 1 + (step - 1) // 4, "phase": phase, "lr": rates, "clips": 4}
    return record | {"audio_s": 8.0, "step_s": 0.5, "loss": 4.0 / step, "grad_norm": 2.0, "tokens": 40} | changed


def eval_record(step: int, split: str, heard: dict[str, str]) -> dict[str, Any]:
    counts = count_errors([SENTENCES[key] for key in heard], list(heard.values()))
    names = ("wer", "cer", "substitutions", "deletions", "insertions", "words", "clips")
    figures = {name: getattr(counts, name) for name in names}
    return {"event": "eval", "step": step, "split": split, "wer_mode": "strict"} | figures


def write_samples(folder: Path, step: int, split: str, heard: dict[str, str]) -> None:
    rows = [{"id": key, "reference": SENTENCES[key], "hypothesis": text} for key, text in heard.items()]
    path = folder / "samples" / f"step-{step:06d}-{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def phase_record(step: int, name: str) -> dict[str, Any]:
    weights = sum(WEIGHTS[name].values())
    counts = {"trainable": weights, "compared": weights, "moved": weights - 1, "frozen": 100 - weights}
    return {"event": "phase", "step": step, "name": name} | counts


def write_data(run: Path, train: dict[str, str], group_of: Callable[[str], str] = lambda _: "") -> None:
    """Manifests where the run's recipe says; the eval manifest is of ``SENTENCES``."""
    for name, texts in (("train", train), ("eval", SENTENCES)):
        clips = [Clip(f"{key}.wav", build_target(text), key, 1.0, group_of(key)) for key, text in texts.items()]
        write_manifest(run.parent / "data" / f"{name}.jsonl", clips)


def make_run(parent: Path) -> Path:
    """A finished run of eight steps, the second phase after the fourth, as training writes it."""
    folder = parent / "run"
    folder.mkdir()
    records = [eval_record(0, "sample", HEARD[0]), phase_record(0, "B")]
    for step in range(1, 9):
        records += [phase_record(4, "A")] if step == 5 else []
        records.append(train_record(step))
        if step in HEARD:
            records.append(eval_record(step, "eval", HEARD[step]))
            records.append({"event": "checkpoint", "step": step, "path": f"checkpoints/step-{step:06d}"})
    write_metrics(folder, records)
    for step, heard in HEARD.items():
        write_samples(folder, step, "eval" if step else "sample", heard)
    phases = [
        {"name": name, "title": f"Strategy {name}", "epochs": 1, "learning_rates": dict.fromkeys(WEIGHTS[name], 1e-4)}
        for name in "BA"
    ]
    data, optimizer = {"folder": str(parent / "data")}, {"clip_grad_norm": 1.0}
    files = {
        "recipe": {"name": "small", "phases": phases, "data": data, "optimizer": optimizer, "max_steps": None},
        "deepspeed": {"zero_optimization": {"stage": 2}},
        "run": {"devices": ["GPU X"] * 2, "num_ranks": 2, "total_steps": 8, "phase_starts": [0, 4], "train_clips": 9}
        | {"train_hours": 1.5, "trainable_weights": WEIGHTS},
        "summary": {"steps": 8, "seconds": 65.0, "wer_mode": "strict"},
    }
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder
