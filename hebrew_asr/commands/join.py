"""``hebrew-asr join``: one set of several that were prepared apart."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hebrew_asr.config.options import Out

if TYPE_CHECKING:
    from hebrew_asr.data.clips import Clip, Clips

SIDES = ("train", "eval")
_NAMED = re.compile(r"(?!\.{1,2}=)([\w.-]+)=(.+)")
_SHOWN_SETS = 20
_GROUP = "group evaluated on"


@dataclass
class Command:
    """Make one set of several that were prepared apart, without copying their sound or preparing them again.

    The new folder holds manifests that lead to the sound where it lies, links to its folders, and joined.json, which
    says what was joined. train, plan, audit and eval take it as they take any set, and training refuses it once one of
    the sets has changed. Each set keeps its own evaluation clips, and all of them together are evaluated on. Training
    clips whose sound, group, or sentence of six words or more another set is evaluated on are left out, and so is
    sound that a set before trains on; dropped.jsonl lists them. Flac that `prepare` wrote is compared by what its
    files say of their samples, other sound is decoded. Evaluation clips that two sets share stay; `audit` names them.

    data.weights goes by the ids of clips up to the first slash, where `prepare` puts the name of their source. NAME=
    puts a name of yours before all ids of a set.

    $ hebrew-asr join knesset-set s3://bucket/crowd-set --out both
    $ hebrew-asr join first=mine second=/other/mine --out both
    """

    sets: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME=]DIR|URL …")]
    """Folders or URLs of prepared sets, two or more, each with a name or not."""
    out: Out[Path]
    """Folder to make; it must not exist, or be empty."""
    own_groups: bool = False
    """Equal names of groups are other people in each set, as where speakers are numbered: each gets its set's name."""
    allow_outside: bool = False
    """Accept sound outside the folders of sets; training needs data.allow_outside=true then."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import refuse_if_taken
        from hebrew_asr.errors import UsageError
        from hebrew_asr.files import whole_folder

        if len(self.sets) < 2:
            raise UsageError(f"a set is joined to another: name two or more, not {len(self.sets)}")
        refuse_if_taken(self.out)
        parts = self._opened()
        _refuse_equal_ids(parts)
        with whole_folder(self.out) as folder:
            _write(folder, parts, _Elsewhere(parts))
        _tell(self.out, parts)
        return 0

    def _opened(self) -> list[_Part]:
        from hebrew_asr.data.manifest import holds_clips, open_manifest
        from hebrew_asr.errors import UsageError
        from hebrew_asr.files import real_path
        from hebrew_asr.remote.cache import set_folder
        from hebrew_asr.remote.joined import RECORD
        from hebrew_asr.remote.paths import is_url

        parts: list[_Part] = []
        for given in self.sets:
            named = None if Path(given).is_dir() else _NAMED.fullmatch(given)
            place = named[2] if named else given
            place = place.rstrip("/") if is_url(place) else str(real_path(place))
            if any(part.place == place for part in parts):
                raise UsageError(f"{place} is named twice: its clips would count double")
            if real_path(self.out).is_relative_to(place):
                raise UsageError(
                    f"--out {self.out} lies in {place}, and would hold a link to itself: give another place"
                )
            folder = set_folder(place)
            if (folder / RECORD).is_file():
                raise UsageError(f"{place} was joined itself: name the sets that its {RECORD} names")
            name = named[1] if named else place.rpartition("/")[2]
            while any(part.name == name for part in parts):
                if named:
                    raise UsageError(f"two sets are to be called {name}: give each a name of its own")
                name += "_"
            tables = _tables(folder)  # digests before the reading: training sees a change that comes between
            sides = {
                side: open_manifest(folder / f"{side}.jsonl", check_audio=True, allow_outside=self.allow_outside)
                for side in SIDES
                if side == "train" or holds_clips(folder / f"{side}.jsonl")
            }
            parts.append(_Part(name, place, folder, tables, sides, bool(named), self.own_groups))
        return parts


@dataclass
class _Part:
    """One of the sets that are joined."""

    name: str
    place: str
    """Absolute path, or URL."""
    folder: Path
    """Of its tables."""
    tables: dict[str, str]
    """Digests of those that it was read from, by their names."""
    sides: dict[str, Clips]
    gives_name: bool
    """Whether its clips get its name."""
    own_groups: bool
    taken: dict[str, array[float]] = field(default_factory=lambda: {side: array("d") for side in SIDES})
    """Durations in seconds of the clips that were taken of each side."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many training clips were, by the reason."""
    names: set[str] = field(default_factory=set)
    """Some that data.weights knows training clips by."""

    def clips(self, side: str) -> Iterator[Clip]:
        """Clips of a side, as the joined set has them."""
        from hebrew_asr.data.clips import Clips, as_path
        from hebrew_asr.remote.paths import is_url

        if (clips := self.sides.get(side)) is None:
            return
        root = os.path.realpath(self.folder)
        heads = map(as_path, clips.batch["folder"].dictionary.to_pylist())
        places = zip(heads, clips.folders, strict=True)
        folders = [where if is_url(where) else self._below(head, where, root) for head, where in places]
        for clip in Clips(clips.batch, folders):
            group = f"{self.name}/{clip.group}" if self.own_groups and clip.group else clip.group
            if self.gives_name:
                group = f"{self.name}/{clip.id}" if clip.group == clip.id else group
                clip = replace(clip, id=f"{self.name}/{clip.id}")
            yield replace(clip, group=group)

    def _below(self, head: str, where: str, root: str) -> str:
        """A folder of sound, by the link to the set; an absolute path where it lies outside."""
        if head[:1] == "/" or ".." in head.split("/"):
            if not where.startswith(f"{root}/"):
                return where
            head = where.removeprefix(f"{root}/")
        return f"sets/{self.name}/{head}"


class _Elsewhere:
    """What links training clips with those that other sets evaluate on, and those whose sound other sets have."""

    def __init__(self, parts: list[_Part]):
        from hebrew_asr.audit.equal import equal_sound

        self._sound = equal_sound({part.name: part.sides for part in parts})
        self._sets: dict[tuple[str, str], set[str]] = {}
        for part in parts:
            for clip in part.clips("eval"):
                for kind, value in self._links(clip):
                    self._sets.setdefault((kind, value), set()).add(part.name)

    def _links(self, clip: Clip) -> Iterator[tuple[str, str]]:
        from hebrew_asr.data.keys import sentence_key
        from hebrew_asr.text.normalize import normalize

        if clip.group:
            yield "group", clip.group
        if sentence := sentence_key(normalize(clip.transcript, "strict")):
            yield "sentence", sentence

    def why_not(self, row: int, clip: Clip, own: str) -> tuple[str, str] | None:
        """Why a training clip of the set ``own`` must not be taken: the reason, and more of it."""
        side, other = self._sound[own].get(row, ("", ""))
        if side == "eval":
            return "sound evaluated on", f"its sound is in the evaluation of {other}"
        for kind, value in self._links(clip):
            if others := sorted(self._sets.get((kind, value), set()) - {own}):
                what = clip.group if kind == "group" else "its sentence"
                return f"{kind} evaluated on", f"{what} is in the evaluation of {others[0]}"
        return ("sound trained on", f"its sound is in the training clips of {other}") if side else None


def _tables(folder: Path) -> dict[str, str]:
    from hebrew_asr.files import xxh3_of

    found = (next(filter(Path.is_file, (folder / f"{side}.jsonl", folder / f"{side}.arrow")), None) for side in SIDES)
    return {file.name: xxh3_of(file) for file in found if file is not None}


def _refuse_equal_ids(parts: list[_Part]) -> None:
    from hebrew_asr.data.clips import compute, values_of
    from hebrew_asr.errors import DataError

    for one, other in combinations([part for part in parts if not part.gives_name], 2):
        for known in one.sides.values():
            for clips in other.sides.values():
                found = values_of(compute.is_in(clips.column("id"), value_set=known.column("id")))
                if found.any():
                    shown = clips[int(found.argmax())].id
                    raise DataError(
                        f"{int(found.sum()):,} clips of {other.place} have ids that clips of {one.place} have too, "
                        f"{shown} among them. If they are other clips, give each set a name, as NAME={other.place}"
                    )


def _write(folder: Path, parts: list[_Part], elsewhere: _Elsewhere) -> None:
    """Write all of a joined set into a folder."""
    from hebrew_asr.data.manifest import index_manifest, row_of
    from hebrew_asr.errors import DataError
    from hebrew_asr.files import write_lines
    from hebrew_asr.streams import tracked

    (folder / "sets").mkdir()
    for part in parts:
        if part.folder == Path(part.place):
            (folder / "sets" / part.name).symlink_to(part.place)
    dropped: list[dict] = []
    for side in SIDES:
        rows = (row_of(clip) for part in parts for clip in _taken(part, side, elsewhere, dropped))
        total = sum(len(part.sides.get(side, ())) for part in parts)
        write_lines(folder / f"{side}.jsonl", tracked(rows, f"joining {side}", total, transient=True))
    write_lines(folder / "dropped.jsonl", dropped)
    for part in parts:
        if not part.taken["train"]:
            first = next(row for row in dropped if row["set"] == part.name)
            others = ". If equal names of groups are other people in each set, give --own-groups"
            raise DataError(
                f"all {part.left_out.total():,} training clips of {part.place} are those of another set, or share a "
                f"group or a sentence with what it is evaluated on. {first['id']}: {first['detail']}"
                f"{others if first['reason'] == _GROUP else ''}"
            )
    _record(folder, parts)
    for side in SIDES:
        if any(part.taken[side] for part in parts):
            index_manifest(folder / f"{side}.jsonl")


def _taken(part: _Part, side: str, elsewhere: _Elsewhere, dropped: list[dict]) -> Iterator[Clip]:
    from hebrew_asr.text.sets import set_of

    for number, clip in enumerate(part.clips(side)):
        reason, detail = (side == "train" and elsewhere.why_not(number, clip, part.name)) or ("", "")
        if reason:
            part.left_out[reason] += 1
            row = {"id": clip.id, "set": part.name, "reason": reason, "detail": detail}
            dropped.append({**row, "duration_s": clip.duration_s, "transcript": clip.transcript})
            continue
        part.taken[side].append(clip.duration_s)
        if side == "train" and len(part.names) <= _SHOWN_SETS:
            part.names.add(set_of(clip.id))
        yield clip


def _record(folder: Path, parts: list[_Part]) -> None:
    from hebrew_asr.remote.joined import JoinedSet, write_record

    sets = []
    for part in parts:
        sides = {
            side: {
                "clips": len(taken),
                "hours": round(sum(taken) / 3600, 4),
                "fingerprint": part.sides[side].fingerprint,
            }
            for side, taken in part.taken.items()
            if side in part.sides
        }
        sets.append(JoinedSet(part.name, part.place, sides, part.tables))
    write_record(folder, sets)


def _tell(out: Path, parts: list[_Part]) -> None:
    """What was joined, and under which names data.weights knows it."""
    from rich.table import Table

    from hebrew_asr.streams import print_table
    from hebrew_asr.units import count

    table = Table("set", "train", "hours", "left out", "evaluate", "hours", "names for data.weights")
    for column in table.columns[1:6]:
        column.justify = "right"
    for part in parts:
        counts = (f"{len(part.taken[side]):,}" for side in SIDES)
        hours = (f"{sum(part.taken[side]) / 3600:,.2f}" for side in SIDES)
        (train, evaluate), (train_h, evaluate_h) = counts, hours
        names = ", ".join(sorted(part.names)[:_SHOWN_SETS]) + (" …" if len(part.names) > _SHOWN_SETS else "")
        table.add_row(part.name, train, train_h, f"{part.left_out.total():,}", evaluate, evaluate_h, names)
    print_table(table)
    for one, other in combinations(parts, 2):
        if both := sorted(one.names & other.names):
            print(
                f"note: {one.place} and {other.place} both have clips of {both[0]}, one set to data.weights: to weigh "
                "them apart, give them names, as NAME=DIR"
            )
    if not any(part.taken["eval"] for part in parts):
        print(f"note: {out / 'eval.jsonl'} holds no clips, so training, which measures on them, refuses this set")
    left_out = sum((part.left_out for part in parts), Counter[str]())
    for reason, number in sorted(left_out.items()):
        kind, _, use = reason.partition(" ")
        print(f"left out, since their {kind} is {use} in another set: {count(number, 'clip')}, in dropped.jsonl")
    if left_out[_GROUP]:
        print("note: where equal names of groups are other people in each set, --own-groups keeps these clips")
    print(f"joined {out}; next: hebrew-asr audit {out}")
