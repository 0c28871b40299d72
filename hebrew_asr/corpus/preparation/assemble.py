"""From the parts of all units to one training set: held-out data, duplicates, split, manifests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record
from hebrew_asr.corpus.split import (
    HeldOut,
    components,
    reaches_share,
    sentence_key,
    shared_keys,
    split_leak_free,
    split_random,
)
from hebrew_asr.errors import DataError

_FEWEST_GROUPS = 5
"""Error rates vary more between podcasts than anything else: on one or two of them they say little."""

_LABEL_KINDS = ("source", "session", "speaker", "episode")


@dataclass
class Assembly:
    """The prepared set before it is written."""

    train: list[Record] = field(default_factory=list)
    eval: list[Record] = field(default_factory=list)
    dropped: list[Record] = field(default_factory=list)
    split: dict[str, Any] = field(default_factory=dict)
    """How the split was made, and what it leaks, for manifest.json."""


def assemble(records: list[Record], options: PrepareOptions) -> Assembly:
    """Decide the fate of every clip.

    Args:
        records: all parts, in the order of the sources.

    Raises:
        DataError: nothing is left to train on, or no leak-free split exists.
    """
    rows = _guide_rows(records)
    _drop_overlap(records)
    _drop_duplicates(records)
    kept = [record for record in records if record.fate == "kept"]
    assembly = Assembly(dropped=[record for record in records if record.fate != "kept"])
    if not kept:
        table = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in records).most_common())
        raise DataError(f"no clip is left to train on, out of {len(records)}: {table or 'the sources are empty'}")
    if options.split == "random":
        on_eval = _random_sides(kept, rows, options)
        assembly.split = {"method": "random", "leaky": True}
    else:
        on_eval, assembly.split = _leak_free_sides(kept, options)
    keys = [linking_keys(record) for record in kept]
    held_out = [linking_keys(record) for record in records if record.fate == "held out"]
    sides = [*[False] * len(kept), *[True] * len(held_out)]
    groups = Counter(components(_narrowed(keys, assembly.split.get("held_out_whole", "source"))))
    assembly.split |= {
        "eval_fraction": options.eval_fraction,
        "seed": options.seed,
        "components": len(groups),
        "largest_component_clips": max(groups.values()),
        "keys_in_train_and_eval": shared_keys(keys, on_eval),
        "keys_in_set_and_public_tests": shared_keys([*keys, *held_out], sides),
    }
    for record, side in zip(kept, on_eval, strict=True):
        (assembly.eval if side else assembly.train).append(record)
    _assert_no_leak(assembly, options)
    return assembly


def linking_keys(record: Record) -> list[str]:
    """Keys by which a clip is linked to others: its groups, its samples, its sentence."""
    keys = list(record.groups)
    if record.fingerprint:
        keys.append(f"audio:{record.fingerprint}")
    sentence = sentence_key(record.words)
    return [*keys, sentence] if sentence else keys


def group_of(record: Record, hold_out: str) -> str:
    """The manifest's ``group``: the widest thing that the split kept whole and that the clip belongs to."""
    named = dict(group.split(":", 1) for group in record.groups)
    kinds = [kind for kind in _LABEL_KINDS if kind != "source" or hold_out == "source"]
    return next((named[kind] for kind in kinds if kind in named), record.id)


def _guide_rows(records: list[Record]) -> dict[tuple[str, int, int], int]:
    """Number every row of the sources that has text: what the guide's random split shuffles, before any filter."""
    rows: dict[tuple[str, int, int], int] = {}
    for record in records:
        if record.fate != "held out" and record.reason != "no text":
            rows.setdefault(_row_of(record), len(rows))
    return rows


def _row_of(record: Record) -> tuple[str, int, int]:
    return record.id.partition("/")[0], record.shard, record.row


def _drop_overlap(records: list[Record]) -> None:
    tests = [record for record in records if record.fate == "held out"]
    held_out = HeldOut((linking_keys(record) for record in tests), (record.words for record in tests))
    for record in records if tests else ():
        if record.fate == "kept":
            kind = held_out.overlap(linking_keys(record), record.words)
            if kind:
                record.fate, record.reason, record.detail = "dropped", "overlaps a public test set", f"same {kind}"


def _drop_duplicates(records: list[Record]) -> None:
    """Keep one clip per uuid, and one per decoded audio: first transcriptions before retakes, then the first listed."""
    seen: dict[str, Record] = {}
    for record in sorted((record for record in records if record.fate == "kept"), key=lambda record: record.retake):
        uuids = [group for group in record.groups if group.startswith("uuid:")] if record.whole else []
        audio = f"audio:{record.fingerprint}"
        for key, reason in (*((uuid, "transcribed twice") for uuid in uuids), (audio, "duplicate audio")):
            if key in seen:
                record.fate, record.reason, record.detail = "dropped", reason, f"kept {seen[key].id}"
                break
        else:
            seen.update(dict.fromkeys((*uuids, audio), record))


def _random_sides(kept: list[Record], rows: dict[tuple[str, int, int], int], options: PrepareOptions) -> list[bool]:
    chosen = split_random(len(rows), eval_fraction=options.eval_fraction, seed=options.seed)
    return [chosen[rows[_row_of(record)]] for record in kept]


def _leak_free_sides(kept: list[Record], options: PrepareOptions) -> tuple[list[bool], dict[str, Any]]:
    """Hold out whole sources; where that leaves too few of them to say anything, whole episodes."""
    keys = [linking_keys(record) for record in kept]
    datasets = [record.id.partition("/")[0] for record in kept]
    if options.eval_fraction == 0:
        return [False] * len(kept), {"method": "none", "leaky": False}
    for hold_out in ("source", "episode") if options.hold_out == "source" else ("episode",):
        narrowed = _narrowed(keys, hold_out)
        on_eval = split_leak_free(narrowed, eval_fraction=options.eval_fraction, seed=options.seed, strata=datasets)
        held_out = len(set(components([own for own, side in zip(narrowed, on_eval, strict=True) if side])))
        if held_out >= _FEWEST_GROUPS and reaches_share(on_eval, datasets, options.eval_fraction):
            break
    if not any(on_eval):
        raise DataError(
            f"all {len(kept)} clips belong together (same source, session, speaker or sentences): no leak-free split "
            "exists. Add other recordings, or give --eval-fraction 0 or --split random"
        )
    present = any(key.startswith(f"{hold_out}:") for own in keys for key in own)
    whole = hold_out if present else "group"
    return on_eval, {"method": "leak-free", "leaky": False, "held_out_whole": whole, "held_out_groups": held_out}


def _narrowed(keys: list[list[str]], hold_out: str) -> list[list[str]]:
    """Without the keys of whole sources, unless those are held out."""
    return keys if hold_out == "source" else [[key for key in own if not key.startswith("source:")] for own in keys]


def _assert_no_leak(assembly: Assembly, options: PrepareOptions) -> None:
    """Union-find makes these zero; a set that leaks must never be written as one that does not."""
    tests = assembly.split["keys_in_set_and_public_tests"]
    assert not any(tests.values()), f"prepared clips share keys with public tests: {tests}"
    if assembly.split["leaky"]:
        return
    shared = dict(assembly.split["keys_in_train_and_eval"])
    if assembly.split.get("held_out_whole") == "episode":
        shared.pop("source", None)  # reported, since hosts recur, but not promised
    assert not any(shared.values()), f"the leak-free split leaks: {shared}"
