"""What preparation tells its user: the plan before, the tables after."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from rich.table import Table

from hebrew_asr.corpus.preparation.disk import DiskNeed
from hebrew_asr.sources import Source
from hebrew_asr.streams import print_table
from hebrew_asr.units import count, gib

_SIDES = {"train": "train on", "eval": "evaluate on"}


def print_plan(sources: list[Source], need: DiskNeed, folder: Path) -> None:
    """Which revisions are read, and how much disk that takes."""
    for source in sources:
        shards, test = len(source.shards), sum(shard.held_out for shard in source.shards)
        size = gib(sum(shard.size_bytes for shard in source.shards))
        number = count(shards, "shard") + f", {test} of them test or validation data" * (test > 0)
        print(f"source {source.name} at {source.revision[:19]}: {number}, {size}")
        for note in source.notes:
            print(f"  {note}")
    downloads = f" and {gib(need.downloads)} of downloads" if need.downloads else ""
    print(f"disk: about {gib(need.clips)} of clips in {folder}{downloads}", flush=True)


def print_result(manifest: dict[str, Any], folder: Path) -> None:
    """The drop table, the split with its leak report, and what to do next."""
    table, places = Table("", "clips", "hours"), 2 if manifest["train"]["hours"] >= 1 else 4
    for column in table.columns[1:]:
        column.justify = "right"
    for side in ("train", "eval"):
        table.add_row(side, f"{manifest[side]['clips']:,}", f"{manifest[side]['hours']:,.{places}f}", style="bold")
    table.add_section()
    for source in manifest["sources"]:
        table.add_row(f"recordings in {source['name']}", f"{source['recordings']:,}", "-")
        table.add_row(f"clips from {source['name']}", f"{source['clips']:,}", f"{source['hours']:,.{places}f}")
    table.add_section()
    for reason, tally in manifest["dropped"].items():
        hours = f"{tally['hours']:,.{places}f}" if tally["hours"] else "-"
        table.add_row(f"dropped: {reason}", f"{tally['clips']:,}", hours)
    print_table(table)
    print(_split_line(manifest["split"]), *_group_lines(manifest), sep="\n")
    asked = manifest["split"]["eval_fraction"] * (manifest["train"]["clips"] + manifest["eval"]["clips"])
    if manifest["eval"]["clips"] < asked / 2:
        largest = manifest["split"]["largest_component_clips"]
        print(f"note: fewer evaluation clips than asked, for the linked groups are large (up to {largest:,} clips)")
    if not manifest["eval"]["clips"]:
        print(f"note: {folder / 'eval.jsonl'} holds no clips, so training, which measures on them, refuses this set")
    print(f"prepared {folder}; next: hebrew-asr audit {folder}")


def print_ready(manifest: dict[str, Any], folder: Path) -> None:
    """For a folder that was prepared before: there is nothing to do."""
    sides = " and ".join(f"{manifest[side]['clips']:,} clips to {what}" for side, what in _SIDES.items())
    print(f"{folder} is ready: {sides}; next: hebrew-asr audit {folder}")


def _group_lines(manifest: dict[str, Any]) -> list[str]:
    """What the split could know of who speaks, and how to tell it more."""
    split, clips = manifest["split"], manifest["train"]["clips"] + manifest["eval"]["clips"]
    if split["leaky"] or split["method"] == "none":
        return []
    sides = (f"{name} {of['train']:,} in training and {of['eval']:,} held out" for name, of in split["groups"].items())
    lines = [f"groups: {', '.join(sides)}"]
    if split["clips_without_group"]:
        names = ", ".join(PurePosixPath(name).name for name in split["groups_by_name"]) or "talk_001 and talk_002"
        lines.append(
            f"note: nothing says who speaks in {split['clips_without_group']:,} of {clips:,} clips. Each of those "
            "recordings counts as its own group, so one voice may be on both sides. Three ways to say what belongs "
            "together: a sub-folder for each speaker or session; a column speaker, session or source in a listing; "
            f"--group-by-name, for names with a running number ({names})"
        )
    return lines


def _split_line(split: dict[str, Any]) -> str:
    whole = f", each {split['held_out_whole']} whole" if "held_out_whole" in split else ""
    drawn = " over clips" if split.get("drawn") == "clips" else ""  # sets of version 0.1.0 do not say
    method = f"random{drawn}, LEAKY" if split["leaky"] else f"{split['method']}{whole}"
    counts = split["keys_in_train_and_eval"]
    shared = [f"{count:,} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    apart = [kind for kind, count in counts.items() if not count]
    none = f"; no shared {', '.join(apart)}" if apart and shared else ""
    both = f"{', '.join(shared) or 'nothing'} on both sides"
    return f"split: {method}; {both}{none}"
