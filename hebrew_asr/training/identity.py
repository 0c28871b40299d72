"""What all ranks of a run must have in common, and what a resumed run must have in common with its beginning."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hebrew_asr
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.config.values import Freedom, flatten, free_keys, value_text
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.phase_proof import fingerprint
from hebrew_asr.errors import UsageError
from hebrew_asr.model.load import hub_commit

_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class BaseModel:
    """Which weights and tokens a run starts from, and keeps where they are frozen."""

    path: str
    hub_commit: str | None
    """Of the hub's snapshot; None for a folder of the user's own."""
    weights: str
    """Fingerprint of all weights, rounded to bf16: the same in either layout and in any precision of the run."""
    weights_exact: str
    """Of all weights as the run holds them, in its precision."""
    tokenizer: str
    """Fingerprint of the vocabulary."""

    @classmethod
    def of(cls, asr: nn.Module, tokenizer: Any, path: str) -> BaseModel:
        """Of a model that nothing has trained yet, summed up on the device that holds it."""
        rounded = _weights(asr, torch.bfloat16)
        exact = _weights(asr, None) if any(p.dtype != torch.bfloat16 for p in asr.parameters()) else rounded
        return cls(path, hub_commit(path), rounded, exact, digest(sorted(tokenizer.get_vocab().items())))

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


@cache
def code_version() -> dict[str, str]:
    """What computes: this package's sources, as a hash, and the versions of the libraries under it."""
    root = Path(hebrew_asr.__file__).parent
    sources = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sources.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    libraries = {name: version(name) for name in ("torch", "transformers", "deepspeed")}
    return {"hebrew_asr": sources.hexdigest()[:32], **libraries}


def refuse_ranks_that_differ(ranks: Ranks, parts: dict[str, dict[str, Any]]) -> None:
    """Compare what the ranks are about to train; collective. If all agree, only a hash per rank is sent.

    Args:
        ranks: all of them.
        parts: plain values by the name of what they belong to: recipe, profile, …

    Raises:
        UsageError: on every rank, naming what differs and on which ranks.
    """
    if len(set(ranks.gather(digest(parts)))) == 1:
        return
    found = how_ranks_differ(ranks.gather(parts))
    more = f"; and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
    raise UsageError(
        f"the ranks were not started to train the same run ({'; '.join(found[:_SHOWN_DIFFERENCES])}{more}); "
        f"give every rank the same command, files and code"
    )


def how_ranks_differ(of_ranks: list[dict[str, dict[str, Any]]]) -> list[str]:
    """For each key that ranks do not have in common, its values and whose they are; ``of_ranks`` in rank order."""
    flat = [flatten(parts) for parts in of_ranks]
    differences = []
    for key in sorted({key for parts in flat for key in parts}):
        ranks_by_value: dict[str, list[int]] = {}
        for rank, parts in enumerate(flat):
            ranks_by_value.setdefault(value_text(parts, key), []).append(rank)
        if len(ranks_by_value) > 1:
            found = ", ".join(f"{value} on {_spelt(group)}" for value, group in ranks_by_value.items())
            differences.append(f"{key.replace('.', ' ', 1)}: {found}")
    return differences


def shared_parts(recipe: Recipe) -> dict[str, Any]:
    """What ranks must have in common of a recipe: all but where things lie."""
    return flatten(recipe.to_dict(), free_keys(Recipe, Freedom.PLACE))


def _spelt(ranks: list[int]) -> str:
    """``rank 3``, or ``ranks 0, 2-5``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"rank{'s' * (len(ranks) > 1)} {text}"
