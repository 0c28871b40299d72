"""Which model a run began with: what is frozen is in no checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hebrew_asr.engine.fingerprint import fingerprint


@dataclass(frozen=True)
class BaseModel:
    """Which weights and tokens a run starts from, and keeps where they are frozen."""

    path: str
    """Absolute where it is a folder, else the hub id."""
    hub_commit: str | None
    """Commit of the hub's snapshot; None for a folder of the user's own."""
    weights: str
    """Fingerprint of all weights, rounded to bf16: the same in either layout and in any precision of the run."""
    weights_exact: str
    """Fingerprint of all weights as the run holds them, in its precision."""
    tokenizer: str
    """Fingerprint of the vocabulary."""

    @classmethod
    def of(cls, asr: nn.Module, tokenizer: Any, path: str) -> BaseModel:
        """The base model that ``asr`` is, before any training; its sums are made on the device that holds it."""
        from hebrew_asr.model.load import hub_commit  # not on import: transformers takes seconds

        rounded = _weights(asr, torch.bfloat16)
        exact = _weights(asr, None) if any(p.dtype != torch.bfloat16 for p in asr.parameters()) else rounded
        place = str(Path(path).absolute()) if Path(path).is_dir() else path
        return cls(place, hub_commit(path), rounded, exact, digest(sorted(tokenizer.get_vocab().items())))

    def __str__(self) -> str:
        return self.path + (f" at commit {self.hub_commit[:12]}" if self.hub_commit else "")

    def differs_from(self, other: BaseModel) -> str | None:
        """What makes this another base model for a run in one precision, in words; None if nothing does."""
        if self.weights_exact != other.weights_exact:
            return "weights"
        return "vocabulary" if self.tokenizer != other.tokenizer else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def _weights(asr: nn.Module, dtype: torch.dtype | None) -> str:
    named = sorted(asr.named_parameters())
    sums = torch.stack([fingerprint(parameter.detach().to(dtype=dtype)) for _, parameter in named]).tolist()
    shapes = [(name, list(parameter.shape)) for name, parameter in named]
    return digest([shapes, sums])


def digest(value: Any) -> str:
    """32 hexadecimal digits of SHA-256 over a plain JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
