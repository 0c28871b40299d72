"""The split on random graphs of ids: no key on both sides, whatever links what."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hebrew_asr.corpus.split import (
    HeldOut,
    reaches_share,
    split_leak_free,
    split_random,
)
from hebrew_asr.data.keys import Keys, sentence_key, sentences

graphs = st.lists(st.lists(st.integers(0, 40).map(lambda n: f"k{n % 5}:{n}"), min_size=1, max_size=4), max_size=60)
fractions = st.floats(0, 0.6)


def reference_components(keys: list[list[str]]) -> list[set[int]]:
    """By flooding: slow and obvious."""
    holders = defaultdict(set)
    for item, own in enumerate(keys):
        for key in own:
            holders[key].add(item)
    found, seen = [], set()
    for item in range(len(keys)):
        if item not in seen:
            component, todo = set(), [item]
            while todo:
                now = todo.pop()
                if now not in component:
                    component.add(now)
                    todo += [other for key in keys[now] for other in holders[key]]
            found.append(component)
            seen |= component
    return found


def reference_split(keys: list[list[str]], fraction: float, seed: int, strata: list[int], fewest: int) -> list[bool]:
    """Item by item, as the split was drawn before there were columns: the same seed must give the same sides."""
    members = reference_components(keys)
    content = [Counter(strata[item] for item in own) for own in members]

    def draw(number: int) -> bytes:
        key = min(key for item in members[number] for key in keys[item])
        return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()

    order = sorted(range(len(members)), key=draw)
    room = Counter({name: math.ceil(fraction * size) for name, size in Counter(strata).items()})
    most = {name: math.ceil(size / fewest) for name, size in room.items()}
    chosen: set[int] = set()
    for number in order:
        fits = all(count <= min(room[name], most[name]) for name, count in content[number].items())
        if fits and len(chosen) + 1 < len(order):
            chosen.add(number)
            room -= content[number]
    if not chosen and fraction > 0 and len(order) > 1:
        chosen.add(min(order, key=lambda number: content[number].total()))
    held = set().union(*(members[number] for number in chosen))
    return [item in held for item in range(len(keys))]


@given(graphs, fractions, st.integers(0, 3), st.integers(1, 5), st.integers(0, 100))
def test_sides_are_those_of_the_split_item_by_item(keys, fraction, seed, fewest, salt):
    strata = [(index * 7 + salt) % 3 % 2 for index in range(len(keys))]
    on_eval = split(keys, fraction, seed, strata=np.array(strata, int), fewest=fewest)
    assert on_eval.tolist() == reference_split(keys, fraction, seed, strata, fewest)
    found = Keys.of(keys).groups_of(on_eval, np.array(strata, int))
    members = reference_components(keys)
    for name, sides in enumerate(found):
        for side, count in sides.items():
            chosen = {i for i, own in enumerate(strata) if own == name and on_eval[i] == (side == "eval")}
            assert count == sum(not chosen.isdisjoint(own) for own in members)


def split(keys: list[list[str]], fraction: float, seed: int, **others) -> np.ndarray:
    return split_leak_free(Keys.of(keys), eval_fraction=fraction, seed=seed, **others)


@given(graphs)
@example([[f"a:{i}", f"a:{i + 1}"] for i in range(300)])  # a long chain
@example([[f"a:{i * 7 % 301}", f"a:{(i + 1) * 7 % 301}"] for i in range(300)])
def test_components_are_connected_components(keys):
    got = defaultdict(set)
    for item, label in enumerate(Keys.of(keys).components.tolist()):
        got[label].add(item)
    assert sorted(got.values(), key=min) == reference_components(keys)
    assert all(label == min(members) for label, members in got.items())


@given(graphs, fractions, st.integers(0, 3))
def test_no_key_is_on_both_sides(keys, fraction, seed):
    on_eval = split(keys, fraction, seed)
    assert len(on_eval) == len(keys)
    assert not any(Keys.of(keys).num_shared(on_eval).values())
    train = {key for own, side in zip(keys, on_eval, strict=True) if not side for key in own}
    tests = {key for own, side in zip(keys, on_eval, strict=True) if side for key in own}
    assert not train & tests


@given(graphs, fractions, st.integers(0, 3))
@example([["a"], ["b"]], 0.5625, 0)  # both would fit
def test_evaluation_has_its_size(keys, fraction, seed):
    on_eval = split(keys, fraction, seed)
    sizes = sorted(len(component) for component in reference_components(keys))
    wanted = math.ceil(fraction * len(keys))
    if wanted == 0 or len(sizes) < 2:
        assert sum(on_eval) in (0, len(keys) if wanted >= len(keys) else 0)
    else:
        assert 1 <= sum(on_eval) <= max(wanted, sizes[0])
        assert sum(on_eval) < len(keys)  # something is left to train on


@given(graphs, fractions, st.integers(0, 3), st.randoms())
def test_the_order_of_the_items_does_not_matter(keys, fraction, seed, random):
    order = list(range(len(keys)))
    random.shuffle(order)
    straight = split(keys, fraction, seed)
    shuffled = split([keys[i] for i in order], fraction, seed)
    assert [straight[i] for i in order] == shuffled.tolist()


def test_seed_and_share():
    keys = [[f"uuid:{i}"] for i in range(1000)]
    splits = [split(keys, 0.05, seed) for seed in (1, 1, 2)]
    assert splits[0].tolist() == splits[1].tolist() != splits[2].tolist()
    assert all(sum(found) == 50 and reaches_share(found, np.zeros(1000, int), 0.05) for found in splits)
    two = split([["source:a"]] * 90 + [["source:b"]] * 30, 0.05, 1)
    assert sum(two) == 30 and not reaches_share(two, np.zeros(120, int), 0.05)


@given(graphs, fractions, st.integers(0, 3), st.integers(0, 100))
def test_every_stratum_gives_its_own_share(keys, fraction, seed, salt):
    strata = [(index * 7 + salt) % 3 % 2 for index in range(len(keys))]
    on_eval = split(keys, fraction, seed, strata=np.array(strata, int))
    assert not any(Keys.of(keys).num_shared(on_eval).values())
    found = Counter(name for name, side in zip(strata, on_eval, strict=True) if side)
    sizes = [len(component) for component in reference_components(keys)]
    within = all(count <= math.ceil(fraction * strata.count(name)) for name, count in found.items())
    assert within or found.total() == min(sizes)


def test_small_components_of_one_dataset_do_not_crowd_out_another():
    keys = [[f"session:{i}"] for i in range(1000)] + [[f"source:{i % 80}"] for i in range(4000)]
    on_eval = split(keys, 0.05, 3, strata=np.repeat([0, 1], [1000, 4000]))
    assert (sum(on_eval[:1000]), sum(on_eval[1000:])) == (50, 200)


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 1000, 4321])
def test_random_split_is_that_of_datasets(rows):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"row": list(range(rows))})
    if rows == 1:  # datasets refuses an empty training side
        assert split_random(1, eval_fraction=0.05, seed=42).tolist() == [True]
        return
    expected = set(table.train_test_split(test_size=0.05, seed=42)["test"]["row"])
    got = split_random(rows, eval_fraction=0.05, seed=42)
    assert {row for row, side in enumerate(got) if side} == expected


def test_only_long_sentences_link():
    assert sentence_key("כן") is None
    assert sentence_key("אחת שתיים שלוש ארבע חמש") is None
    assert sentence_key("אחת שתיים שלוש ארבע חמש שש") == "sentence:אחת שתיים שלוש ארבע חמש שש"
    assert sentence_key("") is None
    words = ["כן", "אחת שתיים שלוש ארבע חמש", "אחת שתיים שלוש ארבע חמש שש", ""]
    assert sentences(pyarrow.array(words)).to_pylist() == ["", "", words[2], ""]


def test_shared_keys_counts_each_kind():
    keys = [["source:a", "uuid:1"], ["source:a", "uuid:2"], ["source:b", "uuid:1"]]
    assert Keys.of(keys).num_shared(np.array([True, False, False])) == Counter(source=1, uuid=1)


def test_held_out_by_key_and_by_words_inside_a_long_recording():
    words = [f"w{i}" for i in range(40)]
    held_out = HeldOut([["uuid:x", "audio:ff"]], [" ".join(words), "short one"])
    assert held_out.overlap(["uuid:y", "audio:ff"], "") == "audio"
    assert held_out.overlap(["uuid:y"], " ".join(words[7:15])) == "sentence"
    assert held_out.overlap(["uuid:y"], " ".join([*words[7:15], "else"])) is None
    assert held_out.overlap(["uuid:y"], "short one") is None
