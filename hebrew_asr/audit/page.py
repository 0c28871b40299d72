"""The page of an audit: one HTML file with no script, in the style of the training report."""

from __future__ import annotations

import base64
import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np

from hebrew_asr.audio.decode import decode
from hebrew_asr.audio.source import opened
from hebrew_asr.audit.audit import SIDES, Audit, as_json, num_groups
from hebrew_asr.audit.checks import PROBLEM_KINDS, describe
from hebrew_asr.audit.columns import Suspect, chars_per_s
from hebrew_asr.audit.figures import histogram, share_bar, text_against_duration, waveform
from hebrew_asr.data.clips import Clip, compute, values_of
from hebrew_asr.files import write_atomically, write_json
from hebrew_asr.pages.document import address, document
from hebrew_asr.pages.markup import Markup, element, join, table
from hebrew_asr.pages.words import duration, percent, quantity
from hebrew_asr.units import count

_STYLE = """
.wide { width: 100% }
.shade1 { opacity: .14 } .shade2 { opacity: .28 } .shade3 { opacity: .45 } .shade4 { opacity: .62 }
.shade5 { opacity: .8 } .shade6 { opacity: 1 }
.ring { fill: none; stroke: var(--c2); stroke-width: 1.8 }
.letters { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 0; padding: 0; list-style: none; direction: rtl }
.letters li {
  min-width: 58px; padding: 5px 8px 4px; text-align: center; border: 1px solid var(--rule); border-radius: 6px;
  background: var(--card);
}
.letters b { display: block; font-size: 20px; line-height: 1.3; font-weight: 500 }
.letters small { font-size: 12px; direction: ltr; unicode-bidi: isolate; font-variant-numeric: tabular-nums }
.listen { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)) }
.listen .card { display: grid; gap: 8px; align-content: start }
.listen blockquote { margin: 0; font-size: 18px; line-height: 1.45; overflow-wrap: anywhere }
.wave { display: block; width: 100%; height: 44px }
.listen audio { width: 100%; height: 36px }
.listen small { overflow-wrap: anywhere }
.reason { display: flex; justify-content: space-between; align-items: baseline; gap: 12px }
.reason b { font-weight: 600; font-size: 15px; color: var(--warn) }
.reason span { color: var(--soft); font-size: 13px }
.rates { gap: 4px 48px }
.rates div + div { padding-left: 48px; border-left: 1px solid var(--rule) }
.checks .open::before { content: "?"; left: 4px; color: var(--warn) }
.checks { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.stack { display: grid; gap: 28px; align-content: start }
@media (max-width: 640px) { .rates div + div { padding-left: 0; border-left: 0 } }
.two {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 8px 44px;
  margin-top: 14px;
}
.two > div { min-width: 0 }
.bars td:nth-child(2) { width: 40%; min-width: 80px }
td.id { overflow-wrap: anywhere; text-align: left }
.wide.problems { table-layout: fixed }
.problems td { text-align: left; overflow-wrap: anywhere }
.problems td.id { width: 38%; padding-right: 24px }
"""
_POLICY = "media-src 'self' file: data:"
"""The page loads its own clips, and nothing else."""
_SHOWN_PROBLEMS = 30
_SHOWN_GROUPS = 12


def write_audit(found: Audit, folder: Path) -> Path:
    """Write ``audit.json`` and ``audit.html`` into ``folder``; returns the page's path."""
    write_json(folder / "audit.json", as_json(found))
    page = folder / "audit.html"
    write_atomically(page, render_page(found, folder))
    return page


def render_page(found: Audit, page_folder: Path) -> str:
    """The whole document. ``page_folder`` is where it will lie: the players' paths start there."""
    name = found.folder.resolve().name
    body = [
        _headline(found, name),
        _checks(found),
        _problems(found),
        _figures(found),
        _split_and_drops(found),
        _listen(found, page_folder),
        _characters(found),
        _details(found),
    ]
    return document(f"{name}: data audit", join(body), style=_STYLE, policy=_POLICY)


def _headline(found: Audit, name: str) -> Markup:
    state = "clean" if found.clean else count(len(found.problems), "problem")
    pill = element("span", state, class_="state" if found.clean else "state unfinished")
    rates = []
    for side in SIDES:
        rows = found.measured.side(side)
        about = f"{side}: {count(len(rows), 'clip')}, {count(num_groups(found.measured, side), 'group')}"
        rates.append(element("div", element("b", duration(float(rows["duration_s"].sum()))), element("span", about)))
    rows = found.measured.found.rows
    words = int(rows["words"].sum())
    mean_s = float(rows["duration_s"].sum()) / max(len(rows), 1)
    dropped = sum(tally["clips"] for tally in found.manifest.get("dropped", {}).values())
    tiles = [
        ("words", f"{words:,}", f"{quantity(words / max(len(rows), 1))} in a clip"),
        (
            "mean clip",
            f"{quantity(mean_s)}\u202fs",
            f"longest {quantity(float(rows['duration_s'].max()))}\u202fs",
        ),
        ("characters", f"{len(found.charset):,}", "different ones in the texts"),
        ("to listen to", f"{len(found.suspects):,}", "the oddest clips, further down"),
    ]
    if found.manifest:
        tiles.insert(
            2,
            (
                "dropped",
                f"{dropped:,}",
                "in preparation, each with its reason" if dropped else "no clip was, in preparation",
            ),
        )
    shown = [element("div", element("dt", n), element("dd", v, element("small", more))) for n, v, more in tiles]
    return element(
        "header",
        element("div", "data audit", class_="eyebrow"),
        element("h1", name, " ", pill),
        element("div", rates, class_="rates"),
        element("dl", shown, class_="tiles"),
    )


def _checks(found: Audit) -> Markup:
    counts = Counter(problem.kind for problem in found.problems)
    lines = []
    for kind, holds in sorted(PROBLEM_KINDS.items(), key=lambda item: counts[item[0]] == 0):
        if counts[kind]:
            lines.append(element("li", f"Not so: {holds} ({counts[kind]:,})", class_="warn"))
        elif kind in found.unchecked:
            lines.append(element("li", f"Not known: {found.unchecked[kind]}", class_="open"))
        else:
            lines.append(element("li", holds[0].upper() + holds[1:], class_="good"))
    return element("ul", lines, class_="checks")


def _problems(found: Audit) -> Markup | None:
    if found.clean:
        return None
    tables = []
    ordered = sorted(found.problems, key=lambda problem: list(PROBLEM_KINDS).index(problem.kind))
    for kind, group in groupby(ordered, key=lambda problem: problem.kind):
        problems = list(group)
        rows = [
            element(
                "tr", element("td", problem.clip_id, class_="id", dir="auto"), element("td", problem.detail, dir="auto")
            )
            for problem in problems[:_SHOWN_PROBLEMS]
        ]
        more = len(problems) - len(rows)
        tables += [
            element("h3", kind, element("span", f"  {len(problems):,}")),
            element("table", element("tbody", rows), class_="wide problems"),
            element("p", f"and {more:,} more, in audit.json", class_="note") if more else None,
        ]
    return element("section", element("h2", "Problems"), tables)


def _figures(found: Audit) -> Markup | None:
    rows = found.measured.found.rows
    whole = rows[rows["decodes"]]
    if not len(whole):
        return None
    train, held = (side[side["decodes"]] for side in map(found.measured.side, SIDES))
    options = found.manifest.get("options", {})
    limits = (options["min_chars_per_s"], options["max_chars_per_s"]) if options else None
    odd = [(float(s.row["duration_s"]), int(s.row["characters"])) for s in found.suspects]
    charts = [
        histogram("Duration", "seconds", train["duration_s"], held["duration_s"]),
        histogram("Pace", "characters per second", chars_per_s(train), chars_per_s(held)),
        text_against_duration(whole["duration_s"], whole["characters"].astype(float), odd, limits),
    ]
    if found.measured.is_decoded:
        charts.append(histogram("Level", "dB, full scale is 0", train["level_db"], held["level_db"]))
    intro = (
        "Bars are shares of the training clips, lines of the evaluation clips (marks, where those are few): where they "
        "agree, so do the sides."
    )
    return element(
        "section",
        element("h2", "What the clips are like"),
        element("p", intro, class_="note"),
        element("div", charts, class_="charts"),
    )


def _split_and_drops(found: Audit) -> Markup:
    right = [_shared(found)]
    dropped = found.manifest.get("dropped", {})
    if dropped:
        most = max(tally["clips"] for tally in dropped.values())
        rows = [
            element(
                "tr",
                element("td", reason),
                element("td", share_bar(tally["clips"] / most)),
                element("td", f"{tally['clips']:,}", class_="number"),
                element("td", duration(3600 * tally["hours"]) if tally["hours"] else "–", class_="number"),
            )
            for reason, tally in dropped.items()
        ]
        names = ("why dropped", "", "clips", "audio")
        right.append(table(names, rows, numbers=names[2:], class_="wide bars"))
    columns = element("div", _groups(found), element("div", right, class_="stack"), class_="two")
    return element("section", element("h2", "Split and losses"), columns)


def _groups(found: Audit) -> Markup:
    """The largest groups: one that dominates a side is what that side measures."""
    largest = []
    for side, clips in found.measured.sides.items():
        group = clips.column("group")
        coded = compute.if_else(compute.equal(group, ""), clips.column("id"), group).dictionary_encode()
        codes = values_of(coded.indices)
        seconds, counts = np.bincount(codes, found.measured.side(side)["duration_s"]), np.bincount(codes)
        for code in np.argsort(-seconds, kind="stable")[:_SHOWN_GROUPS].tolist():
            largest.append((float(seconds[code]), coded.dictionary[code].as_py(), side, int(counts[code])))
    rows = [
        element(
            "tr",
            element("td", group, class_="id", dir="auto"),
            element("td", side),
            element("td", f"{number:,}", class_="number"),
            element("td", duration(total), class_="number"),
        )
        for total, group, side, number in sorted(largest, key=lambda item: -item[0])[:_SHOWN_GROUPS]
    ]
    names = ("largest groups", "side", "clips", "audio")
    return element("div", table(names, rows, numbers=names[2:], class_="wide"))


def _shared(found: Audit) -> Markup:
    split = found.manifest.get("split", {})
    counts = dict(found.shared)
    # Sources recur on both sides where whole episodes were held out: promised by nobody, good to know.
    counts |= {kind: n for kind, n in split.get("keys_in_train_and_eval", {}).items() if kind not in counts}
    rows = [
        element("tr", element("td", kind), element("td", ""), element("td", f"{number:,}", class_="number"))
        for kind, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    method = ""
    if split:
        whole = f", each {split['held_out_whole']} whole" if "held_out_whole" in split else ""
        method = f"Split: {split['method']}{whole}{' (LEAKY)' if split['leaky'] else ''}, seed {split['seed']}."
    return element(
        "div",
        table(("shared by both sides", "", "keys"), rows, numbers=("keys",), class_="wide"),
        element("p", method, class_="note") if method else None,
    )


def _listen(found: Audit, page_folder: Path) -> Markup | None:
    if not found.suspects:
        return None
    intro = "Odd is not wrong: listen, then drop the clip, correct its text, or leave it. The oddest come first."
    cards = [_card(suspect, page_folder, is_decoded=found.measured.is_decoded) for suspect in found.suspects]
    return element(
        "section",
        element("h2", "Listen to these"),
        element("p", intro, class_="note"),
        element("div", cards, class_="cards listen"),
    )


def _card(suspect: Suspect, page_folder: Path, *, is_decoded: bool) -> Markup:
    clip, row = suspect.clip, suspect.row
    facts = [f"{row['duration_s']:.2f}\u202fs", f"{chars_per_s(row):.1f} characters a second"]
    sound: list[Markup] = []
    if is_decoded:
        facts.append(f"speech {percent(float(row['speech_s'] / max(row['duration_s'], 1e-3)), 0)}")
        facts.append(f"{row['level_db']:.0f}\u202fdB")
        source = _address(clip, page_folder)
        sound = [waveform(decode(clip.sound)), element("audio", controls="", preload="none", src=source)]
    return element(
        "article",
        element("div", element("b", "; ".join(suspect.reasons)), element("span", suspect.side), class_="reason"),
        element("blockquote", clip.transcript, lang="he", dir="rtl"),
        *sound,
        element("small", ", ".join(facts)),
        element("small", clip.id, dir="auto"),
        class_="card",
    )


def _address(clip: Clip, page_folder: Path) -> str:
    """Of a clip's sound, from a page in ``page_folder``; what has no file of its own becomes a part of the page."""
    if clip.own_file:
        return address(clip.own_file, page_folder)
    with opened(clip.sound, clip.id) as found:
        return f"data:audio/flac;base64,{base64.b64encode(found.read_at(0, found.size)).decode()}"


def _characters(found: Audit) -> Markup:
    hebrew = sorted((entry for entry in found.charset if "א" <= entry[0] <= "ת"), key=lambda entry: entry[0])
    letters = [
        element("li", element("b", character), element("small", f"{number:,}"), title=describe(character), lang="he")
        for character, number, _ in hebrew
    ]
    rows = [
        element(
            "tr",
            element("td", element("b", character), " ", element("span", describe(character), class_="note")),
            element("td", first, class_="id", dir="auto"),
            element("td", f"{number:,}", class_="number"),
        )
        for character, number, first in found.charset
        if not "א" <= character <= "ת"
    ]
    return element(
        "section",
        element("h2", "Characters"),
        element("ul", letters, class_="letters"),
        element(
            "details",
            element("summary", f"The other {count(len(rows), 'character')}, each with the first clip that has it"),
            element(
                "div",
                table(("character", "first in", "count"), rows, numbers=("count",), class_="wide"),
                class_="scroll",
            ),
            open="" if len(rows) <= 24 else None,
        ),
    )


def _details(found: Audit) -> Markup | None:
    if not found.manifest:
        return None
    text = json.dumps(found.manifest, ensure_ascii=False, indent=2)
    folded = element("details", element("summary", "manifest.json"), element("pre", text))
    return element("section", element("h2", "How it was prepared"), folded, class_="folded")
