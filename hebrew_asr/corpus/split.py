"""Training and evaluation sides of a set of clips, such that nothing that belongs together is on both.

Clips are linked by *keys*: the same podcast or episode, recording session, speaker, uuid, sentence, or decoded audio.
A connected component of that graph goes to one side whole, so no key can be on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from hebrew_asr.data.keys import MIN_SENTENCE_WORDS, Keys

_ENOUGH = 0.5  # of the asked evaluation share; below, the components are too large to be held out whole
_MATTERS = 0.1  # share of all clips, from which on a dataset must be represented


def split_leak_free(
    keys: Keys, *, eval_fraction: float, seed: int, strata: np.ndarray | None = None, fewest: int = 1
) -> np.ndarray:
    """Choose whole components for evaluation, in an order that the seed decides, until their share is reached.

    The choice depends on the keys and the seed only, not on the order of the items. Evaluation never exceeds its
    share of any stratum, except that one component (the smallest) is taken when none fits, if others remain.

    Args:
        keys: of the items, at least one each.
        eval_fraction: share of the items to evaluate on, within [0, 1).
        strata: (items,) the dataset of each item by number; each gives its own share, or else one of small components
            would give all.
        fewest: no component may fill more than one part in so many of a dataset's share.

    Returns:
        (items,) bool, whether it is evaluated on. All False when everything is one component.
    """
    strata = np.zeros(len(keys), np.int64) if strata is None else strata
    first = keys.firsts
    component = np.searchsorted(first, keys.components)
    num_strata = int(strata.max(initial=0)) + 1
    sizes = np.bincount(component * num_strata + strata)
    pairs = np.flatnonzero(sizes)
    starts = np.searchsorted(pairs, np.arange(len(first) + 1) * num_strata).tolist()
    names, counts = (pairs % num_strata).tolist(), sizes[pairs].tolist()
    order = np.argsort(keys.draws(seed), kind="stable")
    room = [math.ceil(eval_fraction * size) for size in np.bincount(strata).tolist()]
    most = [math.ceil(size / fewest) for size in room]
    chosen = np.zeros(len(first), bool)
    left = len(first)
    for number in order.tolist():
        if not any(room):
            break
        content = [(names[at], counts[at]) for at in range(starts[number], starts[number + 1])]
        if left > 1 and all(count <= min(room[name], most[name]) for name, count in content):
            chosen[number] = True  # something must be left to train on
            left -= 1
            for name, count in content:
                room[name] -= count
    if not chosen.any() and eval_fraction > 0 and len(order) > 1:
        chosen[order[np.argmin(np.bincount(component)[order])]] = True  # the first drawn of the smallest
    return chosen[component]


def that_matter(strata: np.ndarray) -> dict[int, int]:
    """The datasets that make up a tenth of all clips or more, each with its number of clips."""
    sizes = enumerate(np.bincount(strata).tolist())
    return {name: size for name, size in sizes if size and size >= _MATTERS * len(strata)}


def reaches_share(on_eval: np.ndarray, strata: np.ndarray, eval_fraction: float) -> bool:
    """Whether evaluation got at least half of its share of every dataset that matters, and not far too much."""
    found = np.bincount(strata[on_eval], minlength=int(strata.max(initial=0)) + 1).tolist()
    wanted = {name: eval_fraction * count for name, count in that_matter(strata).items()}
    most = max(1, math.ceil(eval_fraction * len(strata)) / _ENOUGH)
    return all(found[name] >= _ENOUGH * want for name, want in wanted.items()) and int(on_eval.sum()) <= most


def split_random(num_rows: int, *, eval_fraction: float, seed: int) -> np.ndarray:
    """(rows,) bool, whether ``train_test_split(test_size=eval_fraction, seed=seed)`` of ``datasets`` tests on it."""
    order = np.random.default_rng(seed).permutation(num_rows)
    on_eval = np.zeros(num_rows, dtype=bool)
    on_eval[order[: math.ceil(eval_fraction * num_rows)]] = True
    return on_eval


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
