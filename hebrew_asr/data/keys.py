"""What links clips, in columns: the groups, recordings, samples and sentences that several of them share.

A key is ``kind:value``. Each kind has its values once, and a number for each clip that has one: millions of clips take
some hundred megabytes, where strings in lists would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow

from hebrew_asr.data.clips import array_of, compute, values_of

MIN_SENTENCE_WORDS = 6
"""Shorter sentences ("yes", "thank you very much") are said by everybody and link nobody."""


@dataclass(frozen=True)
class Kind:
    """The keys of one kind."""

    items: np.ndarray
    """(entries,) int64, the clip of each entry; a clip may have several."""
    codes: np.ndarray
    """(entries,) int32, its value by number."""
    values: pyarrow.Array
    """(values,) large_string, each once."""

    @classmethod
    def of(cls, values: pyarrow.Array, items: np.ndarray | None = None) -> Kind:
        """A value for each of ``items`` (each clip in turn by default); an empty one is none."""
        present = values_of(compute.binary_length(values)) > 0
        items = np.flatnonzero(present) if items is None else items[present]
        coded = _marked(values, present).cast(pyarrow.large_string()).dictionary_encode()
        return cls(items, values_of(coded.indices), coded.dictionary)

    def on(self, side: np.ndarray) -> np.ndarray:
        """(values,) bool, which occur among the clips that ``side`` (clips,) marks."""
        found = np.zeros(len(self.values), bool)
        found[self.codes[side[self.items]]] = True
        return found


class Keys:
    """The keys of clips, by kind."""

    def __init__(self, size: int, kinds: dict[str, Kind]):
        """``size``: number of clips."""
        ordered = sorted(kinds.items(), key=lambda item: f"{item[0]}:")
        self._size, self._kinds = size, {name: kind for name, kind in ordered if len(kind.values)}

    @classmethod
    def of(cls, groups: pyarrow.Array | Iterable[Sequence[str]], **others: pyarrow.Array) -> Keys:
        """Keys of clips.

        Args:
            groups: for each clip a list of its keys.
            others: by kind, a value for each clip more; '' is none.
        """
        if not isinstance(groups, pyarrow.Array):
            groups = array_of(list(groups), pyarrow.list_(pyarrow.large_string()))
        items, coded = values_of(compute.list_parent_indices(groups)), groups.flatten().dictionary_encode()
        codes, names = values_of(coded.indices), coded.dictionary
        kinds = {kind: Kind.of(values) for kind, values in others.items()}
        of_names = compute.replace_substring_regex(names, "(?s):.*", "").dictionary_encode()
        for number, kind in enumerate(of_names.dictionary.to_pylist()):
            own = values_of(of_names.indices) == number
            entries, renumbered = own[codes], np.cumsum(own, dtype=np.int32) - 1
            values = compute.utf8_slice_codeunits(_marked(names, own), len(kind) + 1)
            kinds[kind] = Kind(items[entries], renumbered[codes[entries]], values)
        return cls(len(groups), kinds)

    def __len__(self) -> int:
        return self._size

    def without(self, kind: str) -> Keys:
        """All but those of ``kind``."""
        return Keys(self._size, {name: held for name, held in self._kinds.items() if name != kind})

    def kind(self, name: str) -> Kind | None:
        """The keys of a kind; None where there are none."""
        return self._kinds.get(name)

    def having(self, kinds: Iterable[str]) -> np.ndarray:
        """(clips,) bool, which have a key of any of ``kinds``."""
        found = np.zeros(self._size, bool)
        for kind in self._kinds.keys() & set(kinds):
            found[self._kinds[kind].items] = True
        return found

    @cached_property
    def components(self) -> np.ndarray:
        """(clips,) int64, connected components of the graph whose edges are shared keys, by their first clip."""
        linking = [
            (kind.items[several], kind.codes[several], len(kind.values))
            for kind in self._kinds.values()
            for several in [recurring(kind.codes)]
        ]
        label = np.arange(self._size)
        while True:
            before = label
            for items, codes, size in linking:
                least = np.full(size, self._size)
                np.minimum.at(least, codes, label[items])
                hooked = label.copy()
                np.minimum.at(hooked, items, least[codes])
                np.minimum.at(hooked, label[items], least[codes])  # with all that were found together already
                label = _followed(hooked)
            if np.array_equal(label, before):
                return label

    @cached_property
    def smallest(self) -> list[str]:
        """The first key in the order of strings of each component, by its first clip; each clip must have one."""
        label, found = self.components, {}
        first = np.unique(label)
        missing = np.zeros(self._size, bool)
        missing[first] = True
        for name, kind in self._kinds.items():
            ordered = values_of(compute.sort_indices(kind.values))
            rank, least = np.empty(len(ordered), np.int64), np.full(self._size, len(ordered))
            rank[ordered] = np.arange(len(ordered))
            np.minimum.at(least, label[kind.items], rank[kind.codes])
            own = np.flatnonzero(missing & (least < len(ordered)))
            missing[own] = False
            values = kind.values.take(array_of(ordered[least[own]], pyarrow.int64())).to_pylist()
            found |= {component: f"{name}:{value}" for component, value in zip(own.tolist(), values, strict=True)}
        return [found[component] for component in first.tolist()]

    def groups_of(self, side: np.ndarray, strata: np.ndarray) -> list[dict[str, int]]:
        """For each number in ``strata`` (clips,), how many components have clips of it in training and in evaluation.

        ``side`` (clips,): which are evaluated on.
        """
        found = [{"train": 0, "eval": 0} for _ in range(int(strata.max(initial=-1)) + 1)]
        for number, where in enumerate(found):
            for name in where:
                where[name] = len(np.unique(self.components[(strata == number) & (side == (name == "eval"))]))
        return found

    def shared(self, side: np.ndarray) -> dict[str, pyarrow.Array]:
        """By kind, the values that occur both among the clips that ``side`` (clips,) marks and among the others."""
        return {name: _marked(kind.values, kind.on(side) & kind.on(~side)) for name, kind in self._kinds.items()}

    def num_shared(self, side: np.ndarray) -> dict[str, int]:
        """How many values :meth:`shared` gives of each kind."""
        return {name: len(values) for name, values in self.shared(side).items()}


def sentence_key(words: str) -> str | None:
    """Key that equal sentences share, or None for a short one. ``words`` is in the strict normal form."""
    return f"sentence:{words}" if words.count(" ") + 1 >= MIN_SENTENCE_WORDS else None


def sentences(words: pyarrow.Array) -> pyarrow.Array:
    """The values of all :func:`sentence_key`, '' for a short one."""
    is_long = values_of(compute.count_substring(words, " ")) >= MIN_SENTENCE_WORDS - 1
    return compute.if_else(array_of(is_long, pyarrow.bool_()), words, array_of([""], words.type)[0])


def recurring(codes: np.ndarray) -> np.ndarray:
    """(entries,) bool, which of ``codes`` (entries,) occur more than once."""
    return (np.bincount(codes, minlength=1) > 1)[codes]


def _marked(values: pyarrow.Array, chosen: np.ndarray) -> pyarrow.Array:
    """Those that ``chosen`` (values,) bool marks."""
    return values.filter(array_of(chosen, pyarrow.bool_()))


def _followed(label: np.ndarray) -> np.ndarray:
    """Labels followed to their ends: each names an item, none a later one."""
    while True:
        further = label[label]
        if np.array_equal(further, label):
            return label
        label = further
