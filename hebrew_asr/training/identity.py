"""What all ranks of a run must have in common."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hebrew_asr
from hebrew_asr.checkpoints.base_model import digest
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.config.values import Freedom, flatten, free_keys, value_text
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import UsageError, first_few


@cache
def code_version() -> dict[str, str]:
    """What computes: this package's sources, as a hash, and the versions of the libraries under it."""
    root = Path(hebrew_asr.__file__).parent
    sources = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sources.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    libraries = {name: version(name) for name in ("torch", "transformers", "deepspeed")}
    return {"hebrew_asr": sources.hexdigest()[:32], **libraries}


def git_commit() -> str | None:
    """Of this clone; None without git, or where it is none: an installed package may lie in another's repository."""
    root, git = Path(hebrew_asr.__file__).parents[1], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    done = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


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
    raise UsageError(  # each says so: on several nodes their output need not come together
        f"the ranks were not started to train the same run ({first_few(found)}); "
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
