"""What an evaluation found, for people: a table in the terminal, every clip as CSV, and an HTML page to listen to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hebrew_asr.files import write_atomically, write_json
from hebrew_asr.pages.document import document
from hebrew_asr.pages.markup import Markup, element, join, table
from hebrew_asr.pages.words import percent
from hebrew_asr.report.analysis import align
from hebrew_asr.report.speech import aligned, key_of_colors, player_of, samples_table
from hebrew_asr.text.normalize import Mode
from hebrew_asr.text.scoring import SCORING_MODES, Transcript, errors_of
from hebrew_asr.text.transcripts import HYPOTHESES
from hebrew_asr.units import count

FIGURES, _TABLE, _PAGE = "figures.json", "clips.csv", "clips.html"
RESULTS = (HYPOTHESES, FIGURES, _TABLE, _PAGE)
"""What ``eval --out`` and ``score --out`` write, the hypotheses first and by themselves."""
_MOST_CLIPS = 2000
_POLICY = "media-src 'self' file:"
_COUNTS = ("substitutions", "deletions", "insertions", "words", "clips")


def write_results(
    out: Path, clips: Sequence[Transcript], found: Mapping[str, Any], title: str, sounds: Mapping[str, str]
) -> None:
    """Write what is found of the clips; as :func:`clips_page` takes them."""
    write_json(out / FIGURES, found)
    write_atomically(out / _TABLE, clips_csv(clips))
    write_atomically(out / _PAGE, clips_page(clips, found, title, sounds).encode("utf-8", "replace"))


def figures_text(found: Mapping[str, Any]) -> str:
    """The rates of all modes as lines of a table, slices below; every line says its normalizer."""
    lines = [f"normalizer {'WER':>7} {'95 % interval':>17} {'CER':>7} {'WIL':>7}  sub  del  ins   words  clips"]
    for mode, rates in found["modes"].items():
        lines.append(_line(mode, rates))
    for mode, rates in found["modes"].items():
        for kind, parts in rates["slices"].items():
            lines += [f"{_line(mode, part)}  {kind}: {value or 'none'}" for value, part in parts.items()]
    lines.append(f"normalizers of version {found['normalizer_version']}; interval: {found['interval']}")
    made_up = {key: value for key, value in found["invention"].items() if value}
    if made_up:
        lines.append(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in made_up.items()))
    return "\n".join(lines)


def _line(mode: str, rates: Mapping[str, Any]) -> str:
    interval = f"{rates['wer_low_95']:.2%} to {rates['wer_high_95']:.2%}"
    edits = " ".join(f"{rates[key]:>4}" for key in _COUNTS[:3])
    sizes = f"{rates['words']:>7} {rates['clips']:>6}"
    return f"{mode:<10} {rates['wer']:>7.2%} {interval:>17} {rates['cer']:>7.2%} {rates['wil']:>7.2%} {edits} {sizes}"


def clips_csv(transcripts: Sequence[Transcript]) -> str:
    """Every clip with its counts in every mode. It begins with a byte order mark, else Excel breaks the Hebrew."""
    errors = {mode: errors_of(transcripts, mode) for mode in SCORING_MODES}
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    counted = [f"{name}_{mode}" for mode in SCORING_MODES for name in ("wer", *_COUNTS[:4])]
    writer.writerow(["id", "source", "group", "duration_s", *counted, "reference", "hypothesis", "note"])
    for index, clip in enumerate(transcripts):
        numbers: list[Any] = []
        for mode in SCORING_MODES:
            of_clip = errors[mode][index]
            numbers += [round(of_clip.wer, 4), *(getattr(of_clip, name) for name in _COUNTS[:4])]
        texts = (clip.reference, clip.hypothesis, clip.note)
        writer.writerow([clip.id, clip.source, clip.group, clip.duration_s, *numbers, *texts])
    return "\ufeff" + stream.getvalue()


def clips_page(
    transcripts: Sequence[Transcript], found: Mapping[str, Any], title: str, sounds: Mapping[str, str]
) -> str:
    """The worst clips first, aligned from right to left, with a player where there is a file.

    Args:
        transcripts: all clips; 2,000 are shown at most.
        found: their :func:`hebrew_asr.text.scoring.figures`.
        title: what was evaluated.
        sounds: address of a clip's audio file by its id.
    """
    mode: Mode = "strict"
    scored = list(zip(transcripts, errors_of(transcripts, mode), strict=True))
    scored.sort(key=lambda pair: (-pair[1].word_edits / max(pair[1].words, 1), -pair[1].word_edits, pair[0].id))
    shown = scored[:_MOST_CLIPS]
    rows = []
    for clip, errors in shown:
        player = player_of(sounds.get(clip.id))
        tally = join(element("b", f"{errors.word_edits}"), f" in {errors.words}")
        note = element("p", clip.note, class_="raw") if clip.note else None
        small = element("small", element("bdi", clip.id))
        text = aligned(align(clip.reference, clip.hypothesis, mode))
        rows.append(element("tr", element("td", tally, small, player, class_="tally"), element("td", text, note)))
    intro = f"{count(len(transcripts), 'clip')}, worst first, normalized ({mode})."
    if len(shown) < len(scored):
        intro += f" The worst {len(shown):,} are shown; clips.csv holds all."
    body = join(
        element("h1", title),
        element("div", _rates(found), class_="scroll"),
        element("p", f"Interval: {found['interval']}.", class_="note"),
        element("section", element("h2", "Clip by clip"), element("p", intro, class_="note"), key_of_colors()),
        samples_table(rows),
    )
    return document(title, body, policy=_POLICY)


def _rates(found: Mapping[str, Any]) -> Markup:
    names = ("normalizer", "WER", "95 % interval", "CER", "WIL", "substituted", "deleted", "inserted", "words", "clips")
    rows = []
    for mode, rates in found["modes"].items():
        parts = [("", rates)]
        for kind, values in rates["slices"].items():
            parts += [(f", {kind.replace('_', ' ')}: {value or 'none'}", part) for value, part in values.items()]
        for name, part in parts:
            interval = f"{percent(part['wer_low_95'])} to {percent(part['wer_high_95'])}"
            cells = [percent(part["wer"]), interval, percent(part["cer"]), percent(part["wil"])]
            cells += [f"{part[key]:,}" for key in _COUNTS]
            numbers = [element("td", cell, class_="number") for cell in cells]
            rows.append(element("tr", element("td", f"{mode}{name}"), numbers))
    return table(names, rows, numbers=names[1:], class_="evaluations")
