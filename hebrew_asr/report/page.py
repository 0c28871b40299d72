"""The report of a run: one HTML file that needs no network, and no other file but the audio that its players play."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hebrew_asr.files import write_atomically
from hebrew_asr.pages.document import address, asset, document
from hebrew_asr.pages.markup import Markup, element, join, table
from hebrew_asr.pages.words import percent, quantity
from hebrew_asr.report.checks import checks_list
from hebrew_asr.report.clips import clips_section
from hebrew_asr.report.curves import charts
from hebrew_asr.report.gather import RunHistory, read_run
from hebrew_asr.report.guide import NOTE, beside_the_guide
from hebrew_asr.report.headline import headline, result
from hebrew_asr.report.proof import proof_section
from hebrew_asr.report.records import EvalRecord
from hebrew_asr.report.rival import Rival, rival_section
from hebrew_asr.report.speech import confusions_section, samples_section, stories_section
from hebrew_asr.units import count


def write_report(run_folder: Path, out: Path | None = None, other: Rival | None = None) -> Path:
    """Write the report of a run, finished or not; returns its path, ``report.html`` in the run directory by default.

    Raises:
        DataError: ``run_folder`` holds no run, or a file of it is broken.
        EnvironmentProblem: a file of it cannot be read.
    """
    run = read_run(Path(run_folder))
    path = out or run.folder / "report.html"
    # A lone surrogate, which JSON can spell, has no UTF-8 form.
    write_atomically(path, page(run, other, _sounds(run, path.parent)).encode("utf-8", "replace"))
    return path


def page(run: RunHistory, other: Rival | None, sounds: Mapping[str, str]) -> str:
    """The whole document; a browser loads that of an unfinished run anew every half minute.

    Args:
        run: that it tells of.
        other: a run that it is set beside.
        sounds: address of a clip's audio file by its id.
    """
    found = result(run)
    body = [
        _hatch(),
        headline(run, found),
        rival_section(other),
        checks_list(run, found),
        proof_section(run),
        _curves(run),
        _evaluations(run),
        samples_section(found, sounds),
        stories_section(run),
        confusions_section(run, found),
        clips_section(run, found, sounds),
        _details(run),
    ]
    script = asset("cursor.js") + asset("clips.js") + ("" if run.is_finished else asset("live.js"))
    title, policy = f"{run.name}: training report", "media-src 'self' file:"
    return document(title, join(body), script=script, policy=policy)


def _sounds(run: RunHistory, folder: Path) -> dict[str, str]:
    """Addresses of the clips' audio files that are there, from a page in ``folder``."""
    found = run.manifests.audio_of if run.manifests else {}
    return {key: address(path, folder) for key, path in found.items() if Path(path).is_file()}


def _hatch() -> Markup:
    """The pattern of frozen weights; every bar uses it."""
    line = element("path", d="M-1 7l8-8M5 7l2-2M-1 1l2-2")
    pattern = element("pattern", line, id="hatch", width=6, height=6, patternUnits="userSpaceOnUse")
    return element("svg", element("defs", pattern), width=0, height=0, class_="defs", aria_hidden="true")


def _curves(run: RunHistory) -> Markup | None:
    drawn = [chart.draw() for chart in charts(run)]
    if not drawn:
        return None
    intro = "All against the optimizer step. Dashed line: switch of phase. Triangles: checkpoints."
    return element(
        "section",
        element("h2", "Curves"),
        element("p", intro, class_="note"),
        element("div", drawn, class_="charts"),
        _guide(run),
    )


def _guide(run: RunHistory) -> Markup | None:
    told = [f"step {step:,}: {expected} there, {quantity(loss)} here" for step, expected, loss in beside_the_guide(run)]
    text = f"Loss beside the guide's table, in nats per token ({NOTE}): {'; '.join(told)}."
    return element("p", text, class_="note") if told else None


def _evaluations(run: RunHistory) -> Markup | None:
    """Every evaluation in numbers, folded."""
    if not run.evaluations:
        return None
    names = ("step", "split", "clips", "words", "substituted", "deleted", "inserted", "WER", "CER")
    rows = [_evaluation(record) for record in run.evaluations]
    return element(
        "details",
        element("summary", f"{count(len(run.evaluations), 'evaluation')} in numbers"),
        element("div", table(names, rows, numbers={*names} - {"split"}, class_="evaluations"), class_="scroll"),
    )


def _evaluation(record: EvalRecord) -> Markup:
    counts = (record.clips, record.words, record.substitutions, record.deletions, record.insertions)
    numbers = [*(f"{value:,}" for value in counts), percent(record.wer), percent(record.cer)]
    return element(
        "tr",
        element("td", f"{record.step:,}", class_="number"),
        element("td", record.split),
        [element("td", value, class_="number") for value in numbers],
    )


def _details(run: RunHistory) -> Markup:
    """The files that decide what the run was, as they are."""
    files = (
        ("Recipe, resolved", run.recipe),
        ("DeepSpeed configuration", run.profile),
        ("Environment and derived facts", run.facts),
        ("Summary", run.summary),
    )
    folded = [
        element("details", element("summary", title), element("pre", json.dumps(value, ensure_ascii=False, indent=2)))
        for title, value in files
        if value
    ]
    return element("section", element("h2", "What exactly was run"), join(*folded), class_="folded")
