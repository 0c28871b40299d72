"""What was said and what was heard: samples, how sentences were learned, what is confused with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from hebrew_asr.pages.markup import Child, Markup, element, join, table
from hebrew_asr.pages.words import percent
from hebrew_asr.report.analysis import (
    SAME_SOUND,
    Edit,
    Scored,
    ScoredClip,
    Story,
    align_clip,
    confusions,
    errors_by_group,
    errors_by_set,
    random_clips,
    stories,
    worst,
)
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.headline import Result, split_name
from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.wer import ErrorCounts
from hebrew_asr.units import count

_WORST, _RANDOM, _STORIES, _CONFUSIONS = 8, 8, 3, 12
_MAX_COLUMNS, _MAX_CHARS, _MAX_TELLINGS = 40, 220, 8


def samples_section(found: Result | None, sounds: Mapping[str, str]) -> Markup | None:
    """The last evaluation's worst clips, and some drawn at random. ``sounds``: address of a clip's audio by its id."""
    if found is None or found.last_scored is None:
        return None
    scored = found.last_scored
    bad = worst(scored, _WORST)
    drawn = random_clips(scored, _RANDOM, bad)
    wrong = sum(clip.errors.word_edits > 0 for clip in scored.clips)
    perfect = len(scored.clips) - wrong
    intro = (
        f"Step {scored.record.step:,}, {split_name(scored.record)}: {perfect:,} of {count(len(scored.clips), 'clip')} "
        "without an error. Right to left, what was said over what was heard, both normalized."
    )
    return element(
        "section",
        element("h2", "What it hears"),
        element("p", intro, class_="note"),
        key_of_colors(),
        [
            [element("h3", title), samples_table([_row(clip, scored, sounds.get(clip.sample.id)) for clip in clips])]
            for title, clips in (("Worst first", bad), ("Drawn at random, the rest", drawn))
            if clips
        ],
    )


def key_of_colors() -> Markup:
    kinds = (("substitute", "substituted"), ("delete", "deleted"), ("insert", "inserted"))
    return element("p", [element("span", name, class_=kind) for kind, name in kinds], class_="keys")


def samples_table(rows: Child, id: str | None = None) -> Markup:
    """Clips, a row each: a tally and what was heard."""
    return table(("errors in words", "said, and heard below"), rows, class_="samples", id=id)


def _row(clip: ScoredClip, scored: Scored, sound: str | None) -> Markup:
    errors, sample = clip.errors, clip.sample
    name, player = element("small", element("bdi", sample.id)), player_of(sound)
    tally = join(element("b", f"{errors.word_edits}"), f" in {errors.words}", name, player)
    edits = align_clip(sample, scored.record)
    # Normalization hides what carries no word, such as a tag or a broken character; show it where nothing else is left.
    written = sample.hypothesis.strip()
    raw = None
    if not normalize(sample.hypothesis, scored.record.wer_mode):
        raw = element("p", "heard, as written: ", element("bdi", _cut(written)) if written else "nothing", class_="raw")
    return element("tr", element("td", tally, class_="tally"), element("td", aligned(edits), raw))


def player_of(sound: str | None) -> Markup | None:
    """A player of the audio file at this address; None without one."""
    return element("audio", controls="", preload="none", src=sound) if sound else None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}… ({len(text):,} characters)"


def _hebrew(name: str, *children: Child, class_: str | None = None) -> Markup:
    return element(name, *children, class_=class_, dir="rtl", lang="he")


def aligned(edits: Sequence[Edit]) -> Markup:
    """Column by column from the right: the word said over the word heard."""
    columns = [
        element(
            "span",
            element("span", edit.reference or "\u00a0", class_="said"),
            element("span", edit.hypothesis or "\u00a0", class_="heard"),
            class_=f"pair {edit.kind}",
        )
        for edit in edits[:_MAX_COLUMNS]
    ]
    more = len(edits) - _MAX_COLUMNS
    rest = element("span", f"+{more:,}", class_="more") if more > 0 else None
    return _hebrew("div", columns, rest, class_="aligned")


def stories_section(run: RunHistory) -> Markup | None:
    """The same clips at every evaluation that changed something."""
    shown = [story for story in stories(run, _STORIES) if len(story.heard) > 1]
    if not shown:
        return None
    intro = "The same clip at evaluations that heard it differently, under what was said. A gap is a deleted word."
    cards = [_story(story) for story in shown]
    return element("section", element("h2", "How a sentence is learned"), element("p", intro, class_="note"), cards)


def _story(story: Story) -> Markup:
    heard = story.heard
    if len(heard) > _MAX_TELLINGS:  # the first, the last and some evenly between
        last = len(heard) - 1
        heard = [heard[round(index * last / (_MAX_TELLINGS - 1))] for index in range(_MAX_TELLINGS)]
        heard = [heard[0], *(after for before, after in pairwise(heard) if after[1] != before[1])]
    rows = [
        element(
            "tr",
            element("td", f"{evaluation.step:,}", class_="number"),
            element("td", percent(_share(edits)), class_="number"),
            element("td", _heard(edits)),
        )
        for evaluation, edits in heard
    ]
    said = [element("small", element("bdi", story.clip_id)), _hebrew("span", story.reference, class_="line")]
    caption = element("caption", element("div", said))
    return table(("step", "WER", "heard"), rows, caption=caption, numbers=("step", "WER"), class_="story")


def _share(edits: Sequence[Edit]) -> float:
    words = sum(edit.kind != "insert" for edit in edits)
    return sum(edit.kind != "equal" for edit in edits) / max(words, 1)


def _heard(edits: Sequence[Edit]) -> Markup:
    """The hypothesis on one line, a gap where a word is missing."""
    words: list[Child] = []
    for edit in edits[:_MAX_COLUMNS]:
        words += [element("span", edit.hypothesis or "\u00a0", class_=f"word {edit.kind}"), " "]
    if len(edits) > _MAX_COLUMNS:
        words.append(element("span", f"+{len(edits) - _MAX_COLUMNS:,}", class_="more"))
    return _hebrew("span", words, class_="line")


def confusions_section(run: RunHistory, found: Result | None) -> Markup | None:
    """Most frequent errors of the last evaluation, by word and by letter, and those by who speaks and by data set."""
    if found is None or found.last_scored is None or not found.last_scored.total.word_edits:
        return None
    counted = confusions(found.last_scored, _CONFUSIONS)
    groups = errors_by_group(run, found.last_scored, _CONFUSIONS)
    tables = [
        _counted(
            "Words substituted", ["said", "heard"], [(times, _words(*pair)) for pair, times in counted.substituted]
        ),
        _counted(
            "Single letters substituted",
            ["said", "heard", ""],
            [(times, [*_words(*pair), _same_sound(pair)]) for pair, times in counted.letters],
        ),
        _counted("Words deleted", ["word"], [(times, _words(word)) for word, times in counted.deleted]),
        _counted("Words inserted", ["word"], [(times, _words(word)) for word, times in counted.inserted]),
        _counted(
            "Errors by speaker or source",
            ["", "WER"],
            [(errors.word_edits, _group(name, errors)) for name, errors in groups],
            of="errors",
        ),
        _counted(
            "Errors by data set",
            ["", "WER", "words"],
            [(errors.word_edits, _set(name, errors)) for name, errors in errors_by_set(found.last_scored)],
            of="errors",
        ),
    ]
    note = None
    if counted.letters_total:
        share = percent(counted.letters_same_sound / counted.letters_total)
        note = (
            f"Of {count(counted.letters_total, 'word')} wrong by a single letter, {share} have there one that can "
            "sound the same (marked ♪): perhaps heard right and misspelled."
        )
    return element(
        "section",
        element("h2", "What it confuses"),
        element("p", note, class_="note") if note else None,
        element("div", tables, class_="confusions"),
    )


def _words(*words: str) -> list[Markup]:
    return [element("td", _hebrew("span", word)) for word in words]


def _same_sound(pair: tuple[str, str]) -> Markup:
    return element("td", "♪" if frozenset(pair) in SAME_SOUND else "")


def _group(name: str, errors: ErrorCounts) -> list[Markup]:
    return [element("td", element("bdi", name), class_="group"), element("td", percent(errors.wer), class_="number")]


def _set(name: str, errors: ErrorCounts) -> list[Markup]:
    return [*_group(name, errors), element("td", f"{errors.words:,}", class_="number")]


def _counted(title: str, names: list[str], rows: list[tuple[int, list[Markup]]], of: str = "times") -> Markup | None:
    """A table of how often each of ``rows`` occurred; None without rows."""
    if not rows:
        return None
    body = [element("tr", element("td", f"{number:,}", class_="number"), cells) for number, cells in rows]
    return element("div", element("h3", title), table((of, *names), body, numbers=(of,)))
