"""The split on random graphs of ids: no key on both sides, whatever links what."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hebrew_asr.corpus.split import (
    HeldOut,
    components,
    reaches_share,
    sentence_key,
    shared_keys,
    split_leak_free,
    split_random,
)

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


@given(graphs)
def test_components_are_connected_components(keys):
    got = defaultdict(set)
    for item, label in enumerate(components(keys)):
        got[label].add(item)
    assert sorted(got.values(), key=min) == reference_components(keys)
    assert all(label == min(members) for label, members in got.items())


@given(graphs, fractions, st.integers(0, 3))
def test_no_key_is_on_both_sides(keys, fraction, seed):
    on_eval = split_leak_free(keys, eval_fraction=fraction, seed=seed)
    assert len(on_eval) == len(keys)
    assert not any(shared_keys(keys, on_eval).values())
    train = {key for own, side in zip(keys, on_eval, strict=True) if not side for key in own}
    tests = {key for own, side in zip(keys, on_eval, strict=True) if side for key in own}
    assert not train & tests


@given(graphs, fractions, st.integers(0, 3))
@example([["a"], ["b"]], 0.5625, 0)  # both would fit
def test_evaluation_has_its_size(keys, fraction, seed):
    on_eval = split_leak_free(keys, eval_fraction=fraction, seed=seed)
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
    straight = split_leak_free(keys, eval_fraction=fraction, seed=seed)
    shuffled = split_leak_free([keys[i] for i in order], eval_fraction=fraction, seed=seed)
    assert [straight[i] for i in order] == shuffled


def test_seed_and_share():
    keys = [[f"uuid:{i}"] for i in range(1000)]
    splits = [split_leak_free(keys, eval_fraction=0.05, seed=seed) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]
    assert all(sum(split) == 50 and reaches_share(split, [""] * 1000, 0.05) for split in splits)
    two = split_leak_free([["source:a"]] * 90 + [["source:b"]] * 30, eval_fraction=0.05, seed=1)
    assert sum(two) == 30 and not reaches_share(two, [""] * 120, 0.05)


@given(graphs, fractions, st.integers(0, 3), st.integers(0, 100))
def test_every_stratum_gives_its_own_share(keys, fraction, seed, salt):
    strata = ["ab"[(index * 7 + salt) % 3 % 2] for index in range(len(keys))]
    on_eval = split_leak_free(keys, eval_fraction=fraction, seed=seed, strata=strata)
    assert not any(shared_keys(keys, on_eval).values())
    found = Counter(name for name, side in zip(strata, on_eval, strict=True) if side)
    sizes = [len(component) for component in reference_components(keys)]
    within = all(count <= math.ceil(fraction * strata.count(name)) for name, count in found.items())
    assert within or found.total() == min(sizes)


def test_small_components_of_one_dataset_do_not_crowd_out_another():
    keys = [[f"session:{i}"] for i in range(1000)] + [[f"source:{i % 80}"] for i in range(4000)]
    strata = ["recital"] * 1000 + ["crowd"] * 4000
    on_eval = split_leak_free(keys, eval_fraction=0.05, seed=3, strata=strata)
    assert (sum(on_eval[:1000]), sum(on_eval[1000:])) == (50, 200)


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 1000, 4321])
def test_random_split_is_that_of_datasets(rows):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"row": list(range(rows))})
    if rows == 1:  # datasets refuses an empty training side
        assert split_random(1, eval_fraction=0.05, seed=42) == [True]
        return
    expected = set(table.train_test_split(test_size=0.05, seed=42)["test"]["row"])
    got = split_random(rows, eval_fraction=0.05, seed=42)
    assert {row for row, side in enumerate(got) if side} == expected


def test_only_long_sentences_link():
    assert sentence_key("כן") is None
    assert sentence_key("אחת שתיים שלוש ארבע חמש") is None
    assert sentence_key("אחת שתיים שלוש ארבע חמש שש") == "sentence:אחת שתיים שלוש ארבע חמש שש"
    assert sentence_key("") is None


def test_shared_keys_counts_each_kind():
    keys = [["source:a", "uuid:1"], ["source:a", "uuid:2"], ["source:b", "uuid:1"]]
    assert shared_keys(keys, [True, False, False]) == Counter(source=1, uuid=1)


def test_held_out_by_key_and_by_words_inside_a_long_recording():
    words = [f"w{i}" for i in range(40)]
    held_out = HeldOut([["uuid:x", "audio:ff"]], [" ".join(words), "short one"])
    assert held_out.overlap(["uuid:y", "audio:ff"], "") == "audio"
    assert held_out.overlap(["uuid:y"], " ".join(words[7:15])) == "sentence"
    assert held_out.overlap(["uuid:y"], " ".join([*words[7:15], "else"])) is None
    assert held_out.overlap(["uuid:y"], "short one") is None
