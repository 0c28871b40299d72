"""A run beside another one: their WER on the same clips, the paired interval, what got better and what got worse."""

from __future__ import annotations

from dataclasses import dataclass

from hebrew_asr.errors import DataError
from hebrew_asr.pages.markup import Markup, element, table
from hebrew_asr.pages.words import percent
from hebrew_asr.report.analysis import ScoredClip, align_clip, score
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.headline import split_name
from hebrew_asr.report.records import EvalRecord, Sample
from hebrew_asr.report.speech import aligned, key_of_colors
from hebrew_asr.text.scoring import known_groups
from hebrew_asr.text.wer import Difference, ErrorCounts, paired_difference, per_clip_errors
from hebrew_asr.units import count

_SHOWN = 8


@dataclass(frozen=True)
class Rival:
    """Two runs on the clips that the last evaluations of both hold with the same text."""

    names: tuple[str, str]
    evaluations: tuple[EvalRecord, EvalRecord]
    pairs: list[tuple[ScoredClip, ScoredClip]]
    """Each clip as this run heard it, and as the other one did."""
    left_out: int
    """Clips of this run's evaluation that the other one's lacks, or has with another text."""
    difference: Difference
    """The other run's WER less this one's, with its interval."""
    groups: int | None
    """Speakers or sources that the interval draws as wholes; None where it draws clips."""

    def __str__(self) -> str:
        rates = [sum((pair[side].errors for pair in self.pairs), ErrorCounts()).wer for side in (0, 1)]
        found = self.difference
        certain = "" if found.low <= 0 <= found.high else ", which is more than chance"
        over = f"{self.groups} groups" if self.groups else "clips, too narrow where they share a speaker"
        sides = [
            f"{percent(rate)} of {name} after step {record.step:,}"
            for rate, name, record in zip(rates, self.names, self.evaluations, strict=True)
        ]
        return (
            f"on the same {count(len(self.pairs), 'clip')} of {split_name(self.evaluations[0])}, WER {sides[0]} and "
            f"{sides[1]}: {100 * found.wer:+.2f} points (95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f}, "
            f"bootstrap over {over}){certain}"
        )


def rival(run: RunHistory, other: RunHistory) -> Rival:
    """Compare the last evaluations of two runs, of the whole split if both have one.

    Raises:
        DataError: they have no evaluated clip in common.
    """
    for split in ("eval", "sample"):
        last = [[record for record in one.evaluations if record.split == split][-1:] for one in (run, other)]
        if not all(last):
            continue
        (mine,), (theirs,) = last
        ours, samples = score(run, mine), {sample.id: sample for sample in other.samples.get(theirs.key, [])}
        if ours is None:
            continue
        shared = [clip for clip in ours.clips if _is_same(clip.sample, samples.get(clip.sample.id))]
        if shared:
            heard = [samples[clip.sample.id] for clip in shared]
            return _compared((run, other), (mine, theirs), shared, heard, len(ours.clips) - len(shared))
    raise DataError(
        f"{run.folder} and {other.folder} have no evaluated clip in common: a comparison needs the same eval split"
    )


def _is_same(sample: Sample, other: Sample | None) -> bool:
    return other is not None and other.reference == sample.reference


def _compared(
    runs: tuple[RunHistory, RunHistory],
    records: tuple[EvalRecord, EvalRecord],
    shared: list[ScoredClip],
    heard: list[Sample],
    left_out: int,
) -> Rival:
    """Both are counted in the normalizer of the first."""
    errors = per_clip_errors([s.reference for s in heard], [s.hypothesis for s in heard], records[0].wer_mode)
    groups = known_groups([runs[0].group_of(clip.sample) for clip in shared])
    return Rival(
        names=_names(*runs),
        evaluations=records,
        pairs=[
            (mine, ScoredClip(*theirs)) for mine, theirs in zip(shared, zip(heard, errors, strict=True), strict=True)
        ],
        left_out=left_out,
        difference=paired_difference([clip.errors for clip in shared], errors, groups),
        groups=len(set(groups)) if groups else None,
    )


def _names(run: RunHistory, other: RunHistory) -> tuple[str, str]:
    """What to call the runs: by their directories where both have one name."""
    return (run.name, other.name) if run.name != other.name else (str(run.folder), str(other.folder))


def rival_section(found: Rival | None) -> Markup | None:
    """The comparison on the page."""
    if found is None:
        return None
    text = str(found)
    left = f" {count(found.left_out, 'clip')} that only one of them has are left out." if found.left_out else ""
    changed = [(mine.errors.word_edits - theirs.errors.word_edits, mine, theirs) for mine, theirs in found.pairs]
    better = sorted((row for row in changed if row[0] > 0), key=lambda row: (-row[0], row[1].sample.id))
    worse = sorted((row for row in changed if row[0] < 0), key=lambda row: (row[0], row[1].sample.id))
    return element(
        "section",
        element("h2", f"Beside {found.names[1]}"),
        element("p", f"{text[0].upper()}{text[1:]}.{left}", class_="note"),
        key_of_colors(),
        [
            [element("h3", f"{title}: {count(len(rows), 'clip')}"), _table(found, rows[:_SHOWN])]
            for title, rows in ((f"{found.names[1]} hears better", better), (f"{found.names[1]} hears worse", worse))
            if rows
        ],
    )


def _table(found: Rival, rows: list[tuple[int, ScoredClip, ScoredClip]]) -> Markup:
    body = [_row(found, clip, name) for _, *pair in rows for clip, name in zip(pair, found.names, strict=True)]
    return table(("errors", "said, and heard below, by both"), body, class_="samples")


def _row(found: Rival, clip: ScoredClip, name: str) -> Markup:
    tally = element(
        "td", element("b", f"{clip.errors.word_edits}"), element("small", element("bdi", name)), class_="tally"
    )
    return element("tr", tally, element("td", aligned(align_clip(clip.sample, found.evaluations[0]))))
