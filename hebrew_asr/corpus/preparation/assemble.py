"""From the parts of all units to one training set: held-out data, duplicates, split, manifests."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record
from hebrew_asr.corpus.split import (
    HeldOut,
    components,
    groups_of,
    reaches_share,
    sentence_key,
    shared_keys,
    split_leak_free,
    split_random,
    that_matter,
)
from hebrew_asr.errors import DataError

_FEWEST_GROUPS = 5
"""Error rates vary more between podcasts than anything else: on one or two of them they say little."""

_SAY_WHO = ("source", "session", "speaker", "episode")
_LABEL_KINDS = (*_SAY_WHO, "recording")
_NUMBERED = re.compile(r"(.*[^\W\d_].*?)[\s_.()-]*\d+[\s_.()-]*")
"""A name with a running number, and at least a letter before it: talk_001, "recording (2)"."""
_MOST_PROPOSED = 5


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
    if options.group_by_name:
        _group_by_name(records)
    rows = _guide_rows(records)
    _drop_overlap(records)
    _drop_duplicates(records)
    kept = [record for record in records if record.fate == "kept"]
    assembly = Assembly(dropped=[record for record in records if record.fate != "kept"])
    if not kept:
        raise DataError(f"no clip is left to train on, out of {len(records)}: {_reasons(records)}")
    if options.split == "random":
        on_eval, drawn = _random_sides(kept, rows, options)
        assembly.split = {"method": "random", "leaky": True, "drawn": drawn}
    else:
        on_eval, assembly.split = _leak_free_sides(kept, assembly.dropped, options)
    keys = [linking_keys(record) for record in kept]
    held_out = [linking_keys(record) for record in records if record.fate == "held out"]
    sides = [*[False] * len(kept), *[True] * len(held_out)]
    whole = assembly.split.get("held_out_whole", "source")
    groups = Counter(components(_narrowed(keys, whole)))
    assembly.split |= {
        "eval_fraction": options.eval_fraction,
        "seed": options.seed,
        "components": len(groups),
        "largest_component_clips": max(groups.values()),
        "groups": groups_of(_narrowed(keys, whole), on_eval, [_dataset_of(record) for record in kept]),
        "clips_without_group": sum(not says_who(record) for record in kept),
        "groups_by_name": _proposed(kept),
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


def says_who(record: Record) -> bool:
    """Whether anything says which other recordings a clip belongs with: its speaker, session, episode or source."""
    return any(group.partition(":")[0] in _SAY_WHO for group in record.groups)


def _dataset_of(record: Record) -> str:
    return record.id.partition("/")[0]


def _name_before_number(record: Record) -> str | None:
    """What precedes the running number in the name of a recording of which nothing says who speaks."""
    if says_who(record):
        return None
    found = _NUMBERED.fullmatch(PurePosixPath(record.id.partition("#")[0]).with_suffix("").as_posix())
    return found[1] if found and PurePosixPath(found[1]).name else None


def _group_by_name(records: list[Record]) -> None:
    for record in records:
        name = _name_before_number(record)
        if name is not None:
            record.groups = (*record.groups, f"session:{name}")


def _proposed(kept: list[Record]) -> dict[str, int]:
    """The groups that names with running numbers would make, each with its clips; none where they would make one."""
    found = Counter(name for name in map(_name_before_number, kept) if name is not None)
    return dict(found.most_common(_MOST_PROPOSED)) if len(found) > 1 and max(found.values()) > 1 else {}


def _reasons(records: list[Record]) -> str:
    """Why records fell out, with how many of each reason, and what to do about the ones that a user can help."""
    reasons = Counter(record.reason for record in records if record.reason)
    table = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    hints = [hint for reason, hint in _HINTS.items() if reason in reasons]
    return ". ".join([table or "the sources are empty", *hints])


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


def _random_sides(
    kept: list[Record], rows: dict[tuple[str, int, int], int], options: PrepareOptions
) -> tuple[list[bool], str]:
    """Draw rows as the guide does; clips where that leaves none to train on, as with one long recording."""
    chosen = split_random(len(rows), eval_fraction=options.eval_fraction, seed=options.seed)
    on_eval, drawn = [chosen[rows[_row_of(record)]] for record in kept], "rows"
    if all(on_eval):
        on_eval, drawn = split_random(len(kept), eval_fraction=options.eval_fraction, seed=options.seed), "clips"
    if all(on_eval):
        raise DataError(
            f"all {len(kept)} clips would be evaluated on: add other recordings, or give a smaller --eval-fraction"
        )
    return on_eval, drawn


_HINTS = {
    "no text": "A text goes beside its recording under the same name (txt, srt, vtt, TextGrid), or into a listing",
    "too long": "Long recordings are cut where their text has times (srt, vtt, TextGrid, segments)",
    "no audio file": "Paths of a listing start at its folder",
}


def _leak_free_sides(
    kept: list[Record], dropped: list[Record], options: PrepareOptions
) -> tuple[list[bool], dict[str, Any]]:
    """Hold out whole sources; where that leaves too few of them to say anything, whole episodes."""
    keys = [linking_keys(record) for record in kept]
    datasets = [_dataset_of(record) for record in kept]
    if options.eval_fraction == 0:
        return [False] * len(kept), {"method": "none", "leaky": False}
    attempts: list[tuple[int, str, list[bool]]] = []
    for hold_out in ("source", "episode") if options.hold_out == "source" else ("episode",):
        narrowed = _narrowed(keys, hold_out)
        for fewest in (1, _FEWEST_GROUPS):  # as they are drawn; else none so large that it leaves no room for others
            on_eval = split_leak_free(
                narrowed, eval_fraction=options.eval_fraction, seed=options.seed, strata=datasets, fewest=fewest
            )
            held_out = groups_of(narrowed, on_eval, datasets)
            enough = [min(held_out[name]["eval"], _FEWEST_GROUPS) for name in that_matter(datasets)]
            reaches = reaches_share(on_eval, datasets, options.eval_fraction)
            attempts.append((sum(enough) if reaches else 0, hold_out, on_eval))
            if reaches and min(enough, default=_FEWEST_GROUPS) == _FEWEST_GROUPS:
                break
        else:
            continue
        break
    if not any(any(on_eval) for _, _, on_eval in attempts):
        others = f". {len(dropped)} others fell out: {_reasons(dropped)}" if dropped else ""
        raise DataError(
            f"all {len(kept)} clips belong together (same source, session, speaker or sentences): no leak-free split "
            "exists. Add other recordings; or give --split random, by which one voice is on both sides, or "
            f"--eval-fraction 0, by which there is nothing to evaluate on{others}"
        )
    return _best(attempts, keys)


def _best(attempts: list[tuple[int, str, list[bool]]], keys: list[list[str]]) -> tuple[list[bool], dict[str, Any]]:
    """The attempt with most held-out groups, counted up to what is enough in each dataset.

    Of equals the last; where none reaches its share, the last that took components as they were drawn.
    """
    most = max(groups for groups, _, _ in attempts)
    _, hold_out, on_eval = [attempt for attempt in attempts if attempt[0] == most][-1] if most else attempts[-2]
    narrowed = _narrowed(keys, hold_out)
    held_out = len(set(components([own for own, side in zip(narrowed, on_eval, strict=True) if side])))
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
