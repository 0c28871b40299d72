"""Training and evaluation sides of a set of clips, such that nothing that belongs together is on both.

Clips are linked by *keys*: the same podcast or episode, recording session, speaker, uuid, sentence, or decoded audio.
A connected component of that graph goes to one side whole, so no key can be on both.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

MIN_SENTENCE_WORDS = 6
"""Shorter sentences ("yes", "thank you very much") are said by everybody and link nobody."""

_ENOUGH = 0.5  # of the asked evaluation share; below, the components are too large to be held out whole
_MATTERS = 0.1  # share of all clips, from which on a dataset must be represented


def components(keys: Sequence[Sequence[str]]) -> list[int]:
    """Connected components of the graph whose edges are shared keys.

    Args:
        keys: the keys of each item.

    Returns:
        For each item, the index of the first item of its component.
    """
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]  # halves the path, so the forest stays flat
            item = parent[item]
        return item

    first_with: dict[str, int] = {}
    for item, own in enumerate(keys):
        for key in own:
            low, high = sorted((root(first_with.setdefault(key, item)), root(item)))
            parent[high] = low
    return [root(item) for item in range(len(keys))]


def split_leak_free(
    keys: Sequence[Sequence[str]],
    *,
    eval_fraction: float,
    seed: int,
    strata: Sequence[str] | None = None,
    fewest: int = 1,
) -> list[bool]:
    """Choose whole components for evaluation, in an order that the seed decides, until their share is reached.

    The choice depends on the keys and the seed only, not on the order of the items. Evaluation never exceeds its
    share of any stratum, except that one component (the smallest) is taken when none fits, if others remain.

    Args:
        keys: the keys of each item, at least one each.
        eval_fraction: share of the items to evaluate on, within [0, 1).
        strata: the dataset of each item; each gives its own share, or else one of small components would give all.
        fewest: no component may fill more than one part in so many of a dataset's share.

    Returns:
        For each item, whether it is evaluated on. All False when everything is one component.
    """
    strata = strata or [""] * len(keys)
    label = components(keys)
    content: defaultdict[int, Counter[str]] = defaultdict(Counter)
    smallest_key: dict[int, str] = {}
    for component, own, stratum in zip(label, keys, strata, strict=True):
        content[component][stratum] += 1
        smallest_key[component] = min(smallest_key.get(component, own[0]), *own)
    order = sorted(content, key=lambda component: _draw(seed, smallest_key[component]))
    room = Counter({name: math.ceil(eval_fraction * size) for name, size in Counter(strata).items()})
    most = {name: math.ceil(size / fewest) for name, size in room.items()}
    chosen: set[int] = set()
    for component in order:
        fits = all(count <= min(room[name], most[name]) for name, count in content[component].items())
        if fits and len(chosen) + 1 < len(order):  # something must be left to train on
            chosen.add(component)
            room -= content[component]
    if not chosen and eval_fraction > 0 and len(order) > 1:
        chosen.add(min(order, key=lambda component: content[component].total()))  # the first drawn of the smallest
    return [component in chosen for component in label]


def that_matter(strata: Sequence[str]) -> dict[str, int]:
    """The datasets that make up a tenth of all clips or more, each with its number of clips."""
    return {name: size for name, size in Counter(strata).items() if size >= _MATTERS * len(strata)}


def groups_of(
    keys: Sequence[Sequence[str]], on_eval: Sequence[bool], strata: Sequence[str]
) -> dict[str, dict[str, int]]:
    """For each dataset, how many components have clips of it in training, and how many in evaluation."""
    found: dict[str, dict[str, set[int]]] = {name: {"train": set(), "eval": set()} for name in dict.fromkeys(strata)}
    for component, side, name in zip(components(keys), on_eval, strata, strict=True):
        found[name]["eval" if side else "train"].add(component)
    return {name: {side: len(groups) for side, groups in sides.items()} for name, sides in found.items()}


def reaches_share(on_eval: Sequence[bool], strata: Sequence[str], eval_fraction: float) -> bool:
    """Whether evaluation got at least half of its share of every dataset that matters, and not far too much."""
    found = Counter(name for name, side in zip(strata, on_eval, strict=True) if side)
    wanted = {name: eval_fraction * count for name, count in that_matter(strata).items()}
    return all(found[name] >= _ENOUGH * want for name, want in wanted.items()) and found.total() <= max(
        1, math.ceil(eval_fraction * len(strata)) / _ENOUGH
    )


def split_random(num_rows: int, *, eval_fraction: float, seed: int) -> list[bool]:
    """For each row, whether ``train_test_split(test_size=eval_fraction, seed=seed)`` of ``datasets`` tests on it."""
    order = np.random.default_rng(seed).permutation(num_rows)
    on_eval = np.zeros(num_rows, dtype=bool)
    on_eval[order[: math.ceil(eval_fraction * num_rows)]] = True
    return on_eval.tolist()


def sentence_key(words: str) -> str | None:
    """Key that equal sentences share, or None for a short one. ``words`` is in the strict normal form."""
    return f"sentence:{words}" if words.count(" ") + 1 >= MIN_SENTENCE_WORDS else None


def shared_keys(keys: Sequence[Sequence[str]], on_eval: Sequence[bool]) -> dict[str, int]:
    """For each kind of key (the part before its colon), how many distinct keys occur on both sides."""
    sides: dict[bool, dict[str, set[str]]] = {True: defaultdict(set), False: defaultdict(set)}
    for own, side in zip(keys, on_eval, strict=True):
        for key in own:
            sides[side][key.partition(":")[0]].add(key)
    kinds = sorted({*sides[True], *sides[False]})
    return {kind: len(sides[True][kind] & sides[False][kind]) for kind in kinds}


class HeldOut:
    """Everything by which a clip could overlap public test data."""

    def __init__(self, keys: Iterable[Sequence[str]], sentences: Iterable[str]) -> None:
        """``sentences`` are in the strict normal form; recordings of many minutes are welcome."""
        self._keys = {key for own in keys for key in own}
        self._runs = {run for words in sentences for run in _runs_of(words)}

    def overlap(self, keys: Sequence[str], words: str) -> str | None:
        """Kind of the first shared key, ``sentence`` when all of ``words`` is said in a test recording, or None.

        A sentence counts as said when each run of six of its words is: test recordings are often long, and training
        clips short pieces.
        """
        for key in keys:
            if key in self._keys:
                return key.partition(":")[0]
        runs = _runs_of(words)
        return "sentence" if runs and self._runs.issuperset(runs) else None


def _runs_of(words: str) -> list[tuple[str, ...]]:
    split = words.split()
    return [tuple(split[i : i + MIN_SENTENCE_WORDS]) for i in range(len(split) - MIN_SENTENCE_WORDS + 1)]


def _draw(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
