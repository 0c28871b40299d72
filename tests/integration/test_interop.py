"""Exports in other people's programs: equal greedy tokens on clips of 1 to 8 s.

Beyond 8 s qwen-asr 0.0.6 lets the encoder attend over the whole clip. A clip shorter than 1 s it does not pad to a
whole chunk before the convolutions, as transformers does, so the tokens of such a clip may differ.

transformers is always there. The others cannot live beside it: ``HEBREW_ASR_ENV_QWEN_ASR`` and ``HEBREW_ASR_ENV_VLLM``
name the Python of an environment that has qwen-asr 0.0.6, or vLLM 0.32 or later. ``HEBREW_ASR_BASE`` names a folder
with the published model's tokenizer and config.json; without it the tokenizer is a small one of the same kind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn
from transformers import AutoModelForMultimodalLM, AutoProcessor

from hebrew_asr.cli import main
from hebrew_asr.inference.export import save_native
from hebrew_asr.model.load import load_tokenizer
from tests.support import native

SUPPORT = Path(native.__file__).parent
TOKENS = 12
SECONDS = (1.0, 2.4, 7.9)
PROMPT = (
    "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module", params=["tied", "untied", "tied, published tokenizer", "untied, published tokenizer"])
def exported(request, tmp_path_factory) -> Path:
    """Norms and biases are drawn too: at 1 and 0 they would hide a mix-up."""
    folder, options, tokenizer = tmp_path_factory.mktemp("model"), [], None
    if "published" in request.param:
        base = os.environ.get("HEBREW_ASR_BASE")
        if not base:
            pytest.skip("HEBREW_ASR_BASE names no folder")
        options, tokenizer = ["--base", base], load_tokenizer(base)
    asr, tokenizer = native.build(tokenizer=tokenizer)
    if "untied" in request.param:
        drawn = torch.randn(asr.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        asr.lm_head.weight = nn.Parameter(drawn * 0.05)
        asr.config.tie_word_embeddings = asr.config.text_config.tie_word_embeddings = False
    save_native(folder / "model", asr, tokenizer)
    assert main(["export", str(folder / "model"), "--out", str(folder / "export"), *options]) == 0
    return folder / "export"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    files = []
    for index, seconds in enumerate(SECONDS):
        files.append(str(folder / f"{index}.wav"))
        soundfile.write(files[-1], native.sound(seconds, index), 16_000)
    (folder / "clips.json").write_text(json.dumps(files))
    return folder / "clips.json"


@torch.inference_mode()
def said_by_transformers(folder: Path, clips: Path) -> dict[str, list[list[list[int]]]]:
    """By its own auto classes, with prompt ids as they come from its processor."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
    told: dict[str, list[list[list[int]]]] = {}
    for kind, tail in (("free", ""), ("forced", "language Hebrew<asr_text>")):
        told[kind] = []
        for file in json.loads(clips.read_text()):
            samples, _ = soundfile.read(file, dtype="float32")
            inputs = processor(text=[PROMPT + tail], audio=[samples], sampling_rate=16_000, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
            length = inputs["input_ids"].shape[1]
            told[kind].append([ids[:length], ids[length:]])
    return told


def until_end(told: dict[str, list[list[list[int]]]], ends: list[int]) -> dict[str, list[list[list[int]]]]:
    """Answers before their end: qwen-asr stops at the end tokens of the real vocabulary alone."""
    cut = lambda ids: ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]  # noqa: E731
    return {kind: [[prompt, cut(answer)] for prompt, answer in rows] for kind, rows in told.items()}


@pytest.mark.parametrize("program", ["qwen_asr", "vllm"])
def test_equal_greedy_tokens(exported, clips, tmp_path, program):
    expected = said_by_transformers(exported / "hf", clips)
    generation = json.loads((exported / "qwen_asr" / "generation_config.json").read_text())
    answers = [answer for rows in expected.values() for _, answer in rows]
    assert len({token for answer in answers for token in answer}) > 3, "a model that says one thing shows nothing"
    python = os.environ.get(f"HEBREW_ASR_ENV_{program.upper()}")
    if not python:
        pytest.skip(f"HEBREW_ASR_ENV_{program.upper()} names no Python")
    arguments = [exported / "qwen_asr", clips, tmp_path / "out.json", str(TOKENS)]
    done = subprocess.run(
        [python, SUPPORT / f"{program}_tokens.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    ends = generation["eos_token_id"]
    assert until_end(found, ends) == until_end(expected, ends)


@pytest.mark.parametrize("program", ["transformers", "qwen_asr", "vllm"])
def test_the_model_card_s_snippet_runs_as_written(exported, clips, tmp_path, program):
    python = sys.executable if program == "transformers" else os.environ.get(f"HEBREW_ASR_ENV_{program.upper()}")
    if not python:
        pytest.skip(f"HEBREW_ASR_ENV_{program.upper()} names no Python")
    card = (exported / ("hf" if program == "transformers" else "qwen_asr") / "README.md").read_text(encoding="utf-8")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if f"from {program} " in code]
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    shutil.copyfile(json.loads(clips.read_text())[1], tmp_path / "speech.wav")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [python, "snippet.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it printed no text"


def test_a_damaged_export_is_refused(exported):
    file = exported / "qwen_asr" / "config.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"user_token_id": 872', b'"user_token_id": 873'))
    assert main(["export", str(exported), "--check"]) == 5
    file.write_bytes(before)
    assert main(["export", str(exported), "--check"]) == 0
