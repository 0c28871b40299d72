"""What links clips, in numbers: the groups, recordings, samples and sentences that several of them share.

A key is ``kind:value``. Strings are told apart by their digests of 128 bits and stay where they are, in a mapped file
perhaps: millions of clips take some hundred megabytes, where strings in lists would take gigabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow
import xxhash

from hebrew_asr.data.clips import array_of, compute, values_of

MIN_SENTENCE_WORDS = 6
"""Shorter sentences ("yes", "thank you very much") are said by everybody and link nobody."""

_AT_ONCE = 4096
_NONE = np.zeros(0, np.int32)

Parts = Callable[[], Iterable[pyarrow.Array]]
"""A column that is read some thousand values at a time, as often as it is asked for."""


@dataclass(frozen=True)
class Kind:
    """The keys of one kind."""

    items: np.ndarray
    """(entries,) int32, the clip of each entry; a clip may have several."""
    codes: np.ndarray
    """(entries,) int32, its value by number, in the order in which values occur first."""
    firsts: np.ndarray
    """(values,) int64, ascending, where in ``strings`` each stands first."""
    strings: Parts
    """The column of strings that the entries were read of."""
    head: int
    """Characters of each string before its value."""

    @classmethod
    def of(
        cls, items: np.ndarray, places: np.ndarray, digests: bytearray | np.ndarray, strings: Parts, head: int
    ) -> Kind:
        """Number values by their ``digests``, 16 bytes of each; ``places`` (entries,) are theirs in ``strings``."""
        content = [None, pyarrow.py_buffer(digests)]
        held = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(16), len(items), content)
        codes = values_of(held.dictionary_encode().indices)
        highest = np.maximum.accumulate(codes)  # a value that occurs first has the next number
        return cls(items, codes, places[np.diff(highest, prepend=-1) > 0], strings, head)

    def __len__(self) -> int:
        return len(self.firsts)

    def values(self) -> pyarrow.Array:
        """(values,) large_string, each by its number."""
        found, start = [array_of([], pyarrow.large_string())], 0
        for part in self.strings():
            first, stop = np.searchsorted(self.firsts, (start, start + len(part)))
            found.append(part.take(array_of(self.firsts[first:stop] - start, pyarrow.int64())))
            start += len(part)
        values = pyarrow.concat_arrays(found)
        return compute.utf8_slice_codeunits(values, self.head) if self.head else values

    def on(self, side: np.ndarray) -> np.ndarray:
        """(values,) bool, which occur among the clips that ``side`` (clips,) marks."""
        found = np.zeros(len(self), bool)
        found[self.codes[side[self.items]]] = True
        return found


class Keys:
    """The keys of clips, by kind."""

    def __init__(self, size: int, kinds: dict[str, Kind]):
        """``size``: number of clips."""
        ordered = sorted(kinds.items(), key=lambda item: f"{item[0]}:")
        self._size, self._kinds = size, {name: kind for name, kind in ordered if len(kind)}
        self._without: dict[str, Keys] = {}

    @classmethod
    def of(cls, groups: Parts | Iterable[Sequence[str]], **others: Parts) -> Keys:
        """Keys of clips.

        Args:
            groups: for each clip a list of its keys.
            others: by kind, a value for each clip more; '' is none.
        """
        if not callable(groups):
            held = [array_of(list(groups), pyarrow.list_(pyarrow.large_string()))]
            return cls.of(lambda: held, **others)
        numbers: dict[bytes, int] = {}
        size, items, kind_of, digests = 0, [_NONE], [_NONE], bytearray()
        for part in groups():
            names = _encoded(part.flatten())
            items.append(values_of(compute.list_parent_indices(part)).astype(np.int32) + np.int32(size))
            own = [numbers.setdefault(name.partition(b":")[0], len(numbers)) for name in names]
            kind_of.append(np.array(own, np.int32))
            digests += _digests(names)
            size += len(part)
        all_items, all_kinds = np.concatenate(items), np.concatenate(kind_of)
        found = np.frombuffer(digests, np.uint8).reshape(-1, 16)
        kinds = {name: _lone(parts) for name, parts in others.items()}
        for kind, number in numbers.items():
            at = np.flatnonzero(all_kinds == number)
            name = kind.decode()
            kinds[name] = Kind.of(all_items[at], at, found[at], lambda: (p.flatten() for p in groups()), len(name) + 1)
        return cls(size, kinds)

    def __len__(self) -> int:
        return self._size

    def without(self, kind: str) -> Keys:
        """All but those of ``kind``."""
        if kind not in self._without:
            self._without[kind] = Keys(self._size, {name: own for name, own in self._kinds.items() if name != kind})
        return self._without[kind]

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
            (kind.items[several], kind.codes[several], len(kind))
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
    def firsts(self) -> np.ndarray:
        """(components,) int64, ascending, the first clip of each."""
        return np.flatnonzero(self.components == np.arange(self._size))

    def draws(self, seed: int) -> np.ndarray:
        """(components,) uint64, a number for each, by its first clip, that its least key and the seed alone decide.

        Each clip must have a key.
        """
        found = bytearray()
        for part in self._smallest():
            texts = (f"{seed}\0{key}".encode() for key in part.to_pylist())
            found += b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
        return np.frombuffer(found, ">u8")

    def _smallest(self) -> Iterator[pyarrow.Array]:
        """The first key in the order of strings of each component, by its first clip, some thousand at a time."""
        label, firsts = self.components, self.firsts
        missing, keys = np.ones(len(firsts), bool), [array_of([], pyarrow.large_string())]
        owners: list[np.ndarray] = [_NONE]
        for name, kind in self._kinds.items():
            if not missing.any():
                break
            values = kind.values()
            ordered = values_of(compute.sort_indices(values))
            rank, least = np.empty(len(ordered), np.int64), np.full(self._size, len(ordered))
            rank[ordered] = np.arange(len(ordered))
            np.minimum.at(least, label[kind.items], rank[kind.codes])
            least = least[firsts]
            own = np.flatnonzero(missing & (least < len(ordered)))
            missing[own] = False
            owners.append(own)
            own_keys = values.take(array_of(ordered[least[own]], pyarrow.int64()))
            head, between = array_of([f"{name}:", ""], pyarrow.large_string())
            keys.append(compute.binary_join_element_wise(head, own_keys, between))
        assert not missing.any(), "a clip without any key"
        order, all_keys = np.argsort(np.concatenate(owners)), pyarrow.concat_arrays(keys)
        for at in range(0, len(order), _AT_ONCE):
            yield all_keys.take(array_of(order[at : at + _AT_ONCE], pyarrow.int64()))

    def groups_of(self, side: np.ndarray, strata: np.ndarray) -> list[dict[str, int]]:
        """For each number in ``strata`` (clips,), how many components have clips of it in training and in evaluation.

        ``side`` (clips,): which are evaluated on.
        """
        return [
            {name: self.num_components((strata == number) & (side == (name == "eval"))) for name in ("train", "eval")}
            for number in range(int(strata.max(initial=-1)) + 1)
        ]

    def num_components(self, side: np.ndarray) -> int:
        """How many components have clips among those that ``side`` (clips,) marks."""
        return int(np.count_nonzero(np.bincount(self.components[side])))

    def num_shared(self, side: np.ndarray) -> dict[str, int]:
        """By kind, how many values occur both among the clips that ``side`` (clips,) marks and among the others."""
        return {name: int(np.sum(kind.on(side) & kind.on(~side))) for name, kind in self._kinds.items()}


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


def _encoded(strings: pyarrow.Array) -> list[bytes]:
    return strings.cast(pyarrow.large_binary()).to_pylist()


def _digests(strings: Iterable[bytes]) -> bytes:
    """Of 16 bytes each, end to end."""
    return b"".join(map(xxhash.xxh3_128_digest, strings))


def _lone(parts: Parts) -> Kind:
    """A kind of which a clip has one value at most: '' is none."""
    start, items, digests = 0, [_NONE], bytearray()
    for part in parts():
        present = values_of(compute.binary_length(part)) > 0
        items.append(np.flatnonzero(present).astype(np.int32) + np.int32(start))
        digests += _digests(_encoded(part.filter(array_of(present, pyarrow.bool_()))))
        start += len(part)
    found = np.concatenate(items)
    return Kind.of(found, found, digests, parts, 0)


def _followed(label: np.ndarray) -> np.ndarray:
    """Labels followed to their ends: each names an item, none a later one."""
    while True:
        further = label[label]
        if np.array_equal(further, label):
            return label
        label = further
