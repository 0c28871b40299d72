"""What packing must agree with: transformers' own extractor and forward, one clip at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3ASRFeatureExtractor

from hebrew_asr.data.collate import Example
from hebrew_asr.demo.tiny import TinySpec, build_tiny, tiny_model
from hebrew_asr.text.prompt import PromptTokens, build_target, target_ids

TRANSCRIPTS = [
    "שלום",
    "בית־ספר, או בית-ספר?",
    'ב-1948 קמה המדינה; צה"ל',
    "זה טקסט לדוגמה",
    "ילדים משחקים בחצר ואמא קוראת להם הביתה",
    "OK, אז נתראה ב-8:30!",
    "מחר יהיה יום ארוך מאוד, ולכן כדאי ללכת לישון מוקדם ולקום עם השמש",
]
SECONDS = (0.3, 0.5, 1.0, 1.3, 4.9, 8.1, 30.0)


def build(spec: TinySpec | None = None, seed: int = 0, tokenizer: Any = None) -> tuple[Any, Any]:
    """A tiny float32 model, with biases and norms drawn too, and its tokenizer, which is trained if none is given."""
    if tokenizer is None:
        model, tokenizer = build_tiny(spec or TinySpec(), TRANSCRIPTS * 5, seed)
    else:
        model = tiny_model(spec or TinySpec(), tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, tokenizer


def sound(seconds: float, seed: int) -> np.ndarray:
    """int16 noise with a swell, at no round number of samples."""
    rng = np.random.default_rng(seed)
    count = int(seconds * 16_000) + int(rng.integers(1, 150))
    return (rng.standard_normal(count) * 3000 * np.linspace(0.01, 1, count)).astype(np.int16)


def examples(tokenizer: Any, seconds: Sequence[float] = SECONDS) -> list[Example]:
    """One clip of each length, with the transcripts above in turn."""
    texts = [TRANSCRIPTS[index % len(TRANSCRIPTS)] for index in range(len(seconds))]
    return [
        Example(f"clip-{index}", sound(length, index), target_ids(tokenizer, build_target(text)))
        for index, (length, text) in enumerate(zip(seconds, texts, strict=True))
    ]


def features(samples: np.ndarray) -> tuple[Tensor, Tensor]:
    """(1, 128, frames) features and (1, frames) mask of one clip alone; int16 or float samples."""
    wave = samples.astype(np.float32) / 32768.0 if samples.dtype == np.int16 else samples
    out = Qwen3ASRFeatureExtractor()(wave, sampling_rate=16_000, padding=True, return_attention_mask=True)
    return out["input_features"], out["attention_mask"]


def clip_loss(model: Any, example: Example, prompt: PromptTokens) -> Tensor:
    """Summed cross-entropy of one clip through the native forward; labels by position."""
    mel, mask = features(example.samples)
    window = mask.sum(-1)
    num_audio_tokens = int((window // 100 * 13 + model.model.audio_tower._post_cnn_length(window % 100)).item())
    before = prompt.prompt(num_audio_tokens)
    device = model.device
    output = model(
        input_ids=torch.tensor([before + example.target_ids], device=device),
        input_features=mel.to(device, model.dtype),
        input_features_mask=mask.to(device),
        use_cache=False,
    )
    logits = output.logits[0, len(before) - 1 : -1].float()
    return F.cross_entropy(logits, torch.tensor(example.target_ids, device=device), reduction="sum")
