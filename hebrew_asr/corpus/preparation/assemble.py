"""From the parts of all units to one training set: held-out data, duplicates, split, manifests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow

from hebrew_asr.cores import give_back_freed_memory
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record
from hebrew_asr.corpus.split import HeldOut, reaches_share, split_leak_free, split_random, that_matter
from hebrew_asr.data.clips import array_of, values_of
from hebrew_asr.data.keys import Keys, recurring, sentence_key, sentences
from hebrew_asr.data.records import Records
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

    train: Records[Record]
    eval: Records[Record]
    dropped: Records[Record]
    split: dict[str, Any]
    """How the split was made, and what it leaks, for manifest.json."""


def assemble(records: Records[Record] | Iterable[Record], options: PrepareOptions) -> Assembly:
    """Decide the fate of every clip, and write it into ``records`` if these are ``Records``.

    Args:
        records: all parts, in the order of the sources.

    Raises:
        DataError: nothing is left to train on, or no leak-free split exists.
    """
    records = records if isinstance(records, Records) else Records(Record, records)
    if options.group_by_name:
        _group_by_name(records)
    _drop_overlap(records)
    _drop_duplicates(records)
    give_back_freed_memory()
    is_kept, is_test = records.equal("fate", "kept"), records.equal("fate", "held out")
    kept, dropped = records.where(is_kept), records.where(~is_kept)
    if not len(kept):
        raise DataError(f"no clip is left to train on, out of {len(records)}: {_reasons(records)}")
    keys, (strata, names) = _keys_of(kept), kept.coded("id", until="/")
    if options.split == "random":
        on_eval, drawn = _random_sides(kept, records, options)
        split: dict[str, Any] = {"method": "random", "leaky": True, "drawn": drawn}
    else:
        on_eval, split = _leak_free_sides(keys, strata, dropped, options)
    whole = _narrowed(keys, split.get("held_out_whole", "source"))
    known, says_nothing = is_kept | is_test, ~keys.having(_SAY_WHO)
    keys_of_known = _keys_of(records.where(known)) if is_test.any() else keys
    sizes = np.bincount(whole.components)
    split |= {
        "eval_fraction": options.eval_fraction,
        "seed": options.seed,
        "components": int(np.count_nonzero(sizes)),
        "largest_component_clips": int(sizes.max()),
        "groups": dict(zip(names, whole.groups_of(on_eval, strata), strict=True)),
        "clips_without_group": int(np.count_nonzero(says_nothing)),
        "groups_by_name": _proposed(kept.where(says_nothing)),
        "keys_in_train_and_eval": keys.num_shared(on_eval),
        "keys_in_set_and_public_tests": keys_of_known.num_shared(is_test[known]),
    }
    assembly = Assembly(kept.where(~on_eval), kept.where(on_eval), dropped, split)
    _assert_no_leak(assembly)
    return assembly


def _keys_of(records: Records[Record]) -> Keys:
    """Keys by which clips are linked: their groups, their samples, their sentences."""
    return Keys.of(
        partial(records.parts, "groups"),
        audio=partial(records.parts, "fingerprint"),
        sentence=lambda: map(sentences, records.parts("words")),
    )


def linking_keys(record: Record) -> list[str]:
    """Those of one clip, as strings."""
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


def _name_before_number(identity: str) -> str | None:
    """What precedes the running number in the name of a recording."""
    found = _NUMBERED.fullmatch(PurePosixPath(identity.partition("#")[0]).with_suffix("").as_posix())
    return found[1] if found and PurePosixPath(found[1]).name else None


def _group_by_name(records: Records[Record]) -> None:
    """Take recordings of which nothing says who speaks for sessions, by their names."""
    named = {
        number: (*record.groups, f"session:{name}")
        for number, record in enumerate(records)
        if not says_who(record) and (name := _name_before_number(record.id)) is not None
    }
    records.replace(list(named), groups=list(named.values()))


def _proposed(unsaid: Records[Record]) -> dict[str, int]:
    """The groups that names with running numbers would make, each with its clips; none where they would make one.

    ``unsaid``: recordings of which nothing says who speaks.
    """
    names = map(_name_before_number, unsaid.values("id"))
    found = Counter(name for name in names if name is not None)
    return dict(found.most_common(_MOST_PROPOSED)) if len(found) > 1 and max(found.values()) > 1 else {}


def _reasons(records: Records[Record]) -> str:
    """Why records fell out, with how many of each reason, and what to do about the ones that a user can help."""
    reasons = Counter(reason for reason in records.values("reason") if reason)
    table = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    hints = [hint for reason, hint in _HINTS.items() if reason in reasons]
    return ". ".join([table or "the sources are empty", *hints])


def _guide_rows(records: Records[Record]) -> np.ndarray:
    """(records,) The row of each by number, of all rows that have text: what the guide's random split shuffles.

    That is before any filter. A record that is of no such row has -1.
    """
    counts = ~records.equal("fate", "held out") & ~records.equal("reason", "no text")
    place = records.coded("id", until="/")[0].astype(np.int64)
    for column in (records.column("shard"), records.column("row")):
        place = place * (int(column.max(initial=0)) + 1) + column
    rows = np.full(len(records), -1)
    rows[counts] = values_of(array_of(place[counts], pyarrow.int64()).dictionary_encode().indices)
    return rows


def _drop_overlap(records: Records[Record]) -> None:
    tests = records.where(records.equal("fate", "held out"))
    held_out = HeldOut(map(linking_keys, tests), tests.values("words"))
    dropped = {
        number: ("overlaps a public test set", f"same {kind}")
        for number, record in enumerate(records if len(tests) else ())
        if record.fate == "kept" and (kind := held_out.overlap(linking_keys(record), record.words))
    }
    _drop(records, dropped)


def _drop(records: Records[Record], why: dict[int, tuple[str, str]]) -> None:
    """Drop some, each by its place, with reason and detail."""
    rows = sorted(why)
    records.replace(rows, fate="dropped", reason=[why[row][0] for row in rows], detail=[why[row][1] for row in rows])


def _drop_duplicates(records: Records[Record]) -> None:
    """Keep one clip per uuid, and one per decoded audio: first transcriptions before retakes, then the first listed.

    A clip that shares neither with another is not looked at.
    """
    kept = records.where(records.equal("fate", "kept"))
    is_whole, shares = kept.column("whole"), np.zeros(len(kept), bool)
    keys = Keys.of(partial(kept.parts, "groups"), audio=partial(kept.parts, "fingerprint"))
    for name, counts in (("uuid", is_whole), ("audio", np.ones(len(kept), bool))):
        kind = keys.kind(name)
        if kind is not None:
            counted = counts[kind.items]
            shares[kind.items[counted][recurring(kind.codes[counted])]] = True
    seen: dict[str, str] = {}
    dropped = {}
    found = kept.where(shares)
    is_retake = found.column("retake")
    ordered = chain(found.where(~is_retake), found.where(is_retake))
    for number, record in zip(found.numbers[np.argsort(is_retake, kind="stable")].tolist(), ordered, strict=True):
        uuids = [group for group in record.groups if group.startswith("uuid:")] if record.whole else []
        audio = f"audio:{record.fingerprint}"
        for key, reason in (*((uuid, "transcribed twice") for uuid in uuids), (audio, "duplicate audio")):
            if key in seen:
                dropped[number] = reason, f"kept {seen[key]}"
                break
        else:
            seen.update(dict.fromkeys((*uuids, audio), record.id))
    _drop(records, dropped)


def _random_sides(kept: Records[Record], records: Records[Record], options: PrepareOptions) -> tuple[np.ndarray, str]:
    """Draw rows as the guide does; clips where that leaves none to train on, as with one long recording."""
    rows = _guide_rows(records)
    chosen = split_random(int(rows.max()) + 1, eval_fraction=options.eval_fraction, seed=options.seed)
    on_eval, drawn = chosen[rows[kept.numbers]], "rows"
    if on_eval.all():
        on_eval, drawn = split_random(len(kept), eval_fraction=options.eval_fraction, seed=options.seed), "clips"
    if on_eval.all():
        raise DataError(
            f"all {len(kept)} clips would be evaluated on: add other recordings, or give a smaller --eval-fraction"
        )
    return on_eval, drawn


_HINTS = {
    "no text": "A text goes beside its recording under the same name (txt, srt, vtt, TextGrid), or into a listing",
    "too long": "Long recordings are cut where their text has times (srt, vtt, TextGrid, segments)",
    "no audio file": "Paths of a listing start at its folder",
    "past the end of the audio": "Times of a listing are seconds",
    "timestamps past the end of the audio": "Times of segments are seconds but in offsets and in a tsv, there ms",
}


def _leak_free_sides(
    keys: Keys, strata: np.ndarray, dropped: Records[Record], options: PrepareOptions
) -> tuple[np.ndarray, dict[str, Any]]:
    """Hold out whole sources; where that leaves too few of them to say anything, whole episodes."""
    if options.eval_fraction == 0:
        return np.zeros(len(keys), bool), {"method": "none", "leaky": False}
    attempts: list[tuple[int, str, np.ndarray]] = []
    finer = ["episode"] if options.hold_out == "episode" or keys.kind("episode") is not None else []
    for hold_out in ["source", *finer] if options.hold_out == "source" else finer:
        narrowed = _narrowed(keys, hold_out)
        for fewest in (1, _FEWEST_GROUPS):  # as they are drawn; else none so large that it leaves no room for others
            on_eval = split_leak_free(
                narrowed, eval_fraction=options.eval_fraction, seed=options.seed, strata=strata, fewest=fewest
            )
            held_out = narrowed.groups_of(on_eval, strata)
            enough = [min(held_out[name]["eval"], _FEWEST_GROUPS) for name in that_matter(strata)]
            reaches = reaches_share(on_eval, strata, options.eval_fraction)
            attempts.append((sum(enough) if reaches else 0, hold_out, on_eval))
            if reaches and min(enough, default=_FEWEST_GROUPS) == _FEWEST_GROUPS:
                break
        else:
            continue
        break
    if not any(on_eval.any() for _, _, on_eval in attempts):
        others = f". {len(dropped)} others fell out: {_reasons(dropped)}" if len(dropped) else ""
        raise DataError(
            f"all {len(keys)} clips belong together (same source, session, speaker or sentences): no leak-free split "
            "exists. Add other recordings; or give --split random, by which one voice is on both sides, or "
            f"--eval-fraction 0, by which there is nothing to evaluate on{others}"
        )
    return _best(attempts, keys)


def _best(attempts: list[tuple[int, str, np.ndarray]], keys: Keys) -> tuple[np.ndarray, dict[str, Any]]:
    """The attempt with most held-out groups, counted up to what is enough in each dataset.

    Of equals the last; where none reaches its share, the last that took components as they were drawn.
    """
    most = max(groups for groups, _, _ in attempts)
    _, hold_out, on_eval = [attempt for attempt in attempts if attempt[0] == most][-1] if most else attempts[-2]
    held_out = _narrowed(keys, hold_out).num_components(on_eval)
    whole = hold_out if keys.kind(hold_out) is not None else "group"
    return on_eval, {"method": "leak-free", "leaky": False, "held_out_whole": whole, "held_out_groups": held_out}


def _narrowed(keys: Keys, hold_out: str) -> Keys:
    """Without the keys of whole sources, unless those are held out."""
    return keys if hold_out == "source" else keys.without("source")


def _assert_no_leak(assembly: Assembly) -> None:
    """Union-find makes these zero; a set that leaks must never be written as one that does not."""
    tests = assembly.split["keys_in_set_and_public_tests"]
    assert not any(tests.values()), f"prepared clips share keys with public tests: {tests}"
    if assembly.split["leaky"]:
        return
    shared = dict(assembly.split["keys_in_train_and_eval"])
    if assembly.split.get("held_out_whole", "source") != "source":
        shared.pop("source", None)  # reported, since hosts recur, but not promised
    assert not any(shared.values()), f"the leak-free split leaks: {shared}"
