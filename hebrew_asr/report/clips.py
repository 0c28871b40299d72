"""Every clip of the last evaluation, as it is written, to be filtered and put in order; with a player where it can."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hebrew_asr.pages.markup import Markup, element
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.headline import Result, split_name
from hebrew_asr.report.speech import samples_table
from hebrew_asr.units import count

_MAX_CHARS = 2000
"""A longer text is cut: one that a model never stopped writing."""
_KINDS = {"all": "all clips", "wrong": "with errors", "right": "without an error"}
_ORDERS = {
    "rate": "highest share of errors first",
    "errors": "most errors first",
    "words": "longest first",
    "group": "by speaker or source",
    "name": "by name",
}


def clips_section(run: RunHistory, found: Result | None, sounds: Mapping[str, str]) -> Markup | None:
    """A list that ``clips.js`` fills from the data beside it. ``sounds``: address of a clip's audio file by its id."""
    if found is None or found.last_scored is None:
        return None
    scored = found.last_scored
    rows = [
        [
            clip.sample.id,
            run.group_of(clip.sample),
            clip.errors.word_edits,
            clip.errors.words,
            clip.sample.reference[:_MAX_CHARS],
            clip.sample.hypothesis[:_MAX_CHARS],
            sounds.get(clip.sample.id, ""),
        ]
        for clip in scored.clips
    ]
    intro = (
        f"{count(len(rows), 'clip')} of step {scored.record.step:,}, {split_name(scored.record)}, as written: said, "
        f"heard below. Errors are counted normalized ({scored.record.wer_mode}); words are marked as they stand here."
    )
    query = element("input", type="search", id="clip-query", placeholder="words, name or speaker", aria_label="filter")
    controls = element("div", query, _choice("clip-kind", _KINDS), _choice("clip-order", _ORDERS), class_="controls")
    return element(
        "section",
        element("h2", "All clips"),
        element("p", intro, class_="note"),
        element("noscript", element("p", "This list needs JavaScript; the run's folder samples/ holds it as JSON.")),
        controls,
        element("p", id="clip-count", class_="note"),
        samples_table(None, id="clip-list"),
        element("button", "100 more", id="clip-more", type="button", hidden=""),
        element("div", json.dumps(rows, ensure_ascii=False), id="clip-data", hidden=""),
    )


def _choice(name: str, options: dict[str, str]) -> Markup:
    return element("select", [element("option", text, value=value) for value, text in options.items()], id=name)
