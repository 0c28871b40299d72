"""Answers what a careful reader would ask about the figures, from the run's own files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hebrew_asr.pages.markup import Markup, element
from hebrew_asr.pages.words import percent
from hebrew_asr.report.analysis import compare, overlap
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.headline import Result, split_name
from hebrew_asr.report.records import FaultRecord
from hebrew_asr.text.normalize import NORMALIZER_VERSION
from hebrew_asr.units import count


@dataclass(frozen=True)
class Check:
    """An answer: whether it is good news, and the sentence."""

    good: bool
    text: str


def checks_list(run: RunHistory, found: Result | None) -> Markup:
    """The answers, those to worry about first."""
    checks = [_ended(run), *_faults(run)]
    if found is not None:
        checks += [check for check in (_like_for_like(found), _recount(found), _seen(run, found)) if check]
    rows = [
        element("li", check.text, class_="good" if check.good else "warn")
        for check in sorted(checks, key=lambda check: check.good)
    ]
    return element("ul", rows, class_="checks")


def _ended(run: RunHistory) -> Check:
    taken = f"{run.last_step:,} of {run.planned_steps:,} steps are on record"
    if run.is_finished:
        return Check(True, f"The run has ended: {taken}.")
    return Check(False, f"The run has not ended: {taken}. Every figure here is of that part.")


def _faults(run: RunHistory) -> list[Check]:
    """Faults that the run tolerated, and what is left of its files."""
    checks = []
    bad = {step.step for step in run.steps if not math.isfinite(step.loss)}
    bad |= {fault.step for fault in run.faults if fault.kind == "non-finite"}
    if bad:
        found = (
            f"{count(len(bad), 'step')} had a loss or gradients that were not finite, the first at step {min(bad):,}"
        )
        checks.append(Check(False, f"{found}; the charts leave out what cannot be drawn."))
    for measured, what in ((False, "training clip"), (True, "measured clip")):
        unreadable = [fault for fault in run.faults if fault.kind == "unreadable" and bool(fault.split) == measured]
        reasons = sorted({reason for fault in unreadable for reason in fault.reasons})
        if reasons:
            became = "counted as not heard" if measured else f"{_is_or_are(len(reasons))} left out"
            found = f"{count(len(reasons), what)} could not be decoded and {became}"
            checks.append(Check(False, f"{found}; {reasons[0]}"))
    checks += [Check(False, f"{told}.") for fault in run.faults for told in _told(fault)]
    checks += [
        Check(False, f"{count(lines, 'line')} of {name} could not be read and {_is_or_are(lines)} left out.")
        for name, lines in run.unreadable.items()
    ]
    return checks


def _told(fault: FaultRecord) -> list[str]:
    """Faults that are told one by one."""
    match fault.kind:
        case "fallback":
            return [f"Since step {fault.step:,}: {fault.name} ({fault.reason})"]
        case "out-of-memory":
            ranks = ", ".join(map(str, fault.ranks))
            return [f"Since step {fault.step:,}: {fault.batching}, as rank {ranks} ran out of memory in {fault.part}"]
        case "checkpoint" | "damaged checkpoint":
            return [f"Step {fault.step:,}, {fault.kind}: {reason}" for reason in fault.reasons]
        case "final model" | "report":
            return [f"Step {fault.step:,}: {reason}" for reason in fault.reasons]
    return []


def _is_or_are(number: int) -> str:
    return "is" if number == 1 else "are"


def _like_for_like(found: Result) -> Check | None:
    """The first evaluation is often on a sample, the last on the whole split: compare on the clips of both."""
    first, last = found.first, found.last
    if found.is_single:
        return None
    shared = compare(found.first_scored, found.last_scored) if found.first_scored and found.last_scored else None
    if shared is None:
        text = f"The first figure is of {split_name(first)}, the last of {split_name(last)}: not the same clips."
        return None if (first.split, first.clips) == (last.split, last.clips) else Check(False, text)
    before, after = shared
    if before.clips == first.clips == last.clips:
        return Check(True, "The first and the last WER are of the same clips.")
    return Check(
        False,
        f"The first figure is of {split_name(first)}. On the {count(before.clips, 'clip')} of both evaluations "
        f"the WER went from {percent(before.wer)} to {percent(after.wer)}.",
    )


def _recount(found: Result) -> Check:
    if found.last_scored is None:
        return Check(False, "The last evaluation left no samples, so its figures could not be counted again.")
    if found.last_scored.agrees:
        return Check(
            True,
            f"Counted again for this page from the saved transcripts (normalizer version {NORMALIZER_VERSION}): "
            "the same substitutions, deletions and insertions as the run wrote down.",
        )
    total = found.last_scored.total
    return Check(
        False,
        f"Counted again from the saved transcripts (normalizer version {NORMALIZER_VERSION}), the last WER is "
        f"{percent(total.wer)} over {count(total.clips, 'clip')}, not the {percent(found.last.wer)} that the run wrote "
        "down: the normalizer or the transcripts have changed since.",
    )


def _seen(run: RunHistory, found: Result) -> Check | None:
    """Whether the measured clips are held out."""
    if found.last_scored is None:
        return None
    seen = overlap(run, found.last_scored)
    if seen is None:
        return Check(False, "Whether training saw these clips was not checked: the run's manifests are not at hand.")
    clips, sentences = seen
    if clips:
        return Check(
            False,
            f"{clips:,} of the {count(found.last.clips, 'measured clip')} are in the training set: "
            "the WER shows what was learned by heart, not how unheard speech would fare.",
        )
    also = f"{sentences:,} have a sentence that occurs in it" if sentences else "nor is any sentence"
    return Check(not sentences, f"None of the measured clips is in the training set, {also}.")
