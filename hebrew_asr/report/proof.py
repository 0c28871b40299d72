"""The proof of phase as a visible fact: what trains, what moved, what stayed bit for bit."""

from __future__ import annotations

from typing import Any

from hebrew_asr.pages.figures import COLORS
from hebrew_asr.pages.markup import Markup, element, join
from hebrew_asr.pages.words import percent, scientific
from hebrew_asr.report.curves import group_colors, timeline
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.records import PhaseRecord
from hebrew_asr.units import count


def proof_section(run: RunHistory) -> Markup:
    """A card for each phase that was reached, in order."""
    planned = {str(phase.get("name")): phase for phase in run.recipe.get("phases", [])}
    cards = [
        _card(run, name, start, planned.get(name, {}), [proof for proof in run.proofs if proof.name == name])
        for name, start in timeline(run).phases
    ]
    waiting = [name for name in planned if name not in dict(timeline(run).phases)]
    later = element("p", f"Not reached yet: phase {', '.join(waiting)}.", class_="note") if waiting else None
    return element(
        "section",
        element("h2", "What trained, and what did not"),
        element(
            "p",
            "After the first step of each phase, and again after each resume: every weight that should train lies in "
            "the optimizer once, got its gradient, and AdamW took a step where it is owned; every frozen one has the "
            "bits that it had; all ranks hold the same. Otherwise the run stops. Of the weights looked at one by one, "
            "every one whose step is larger than rounding must have moved.",
            class_="note",
        ),
        element("div", cards, class_="cards"),
        later,
    )


def _card(run: RunHistory, name: str, start: int, phase: dict[str, Any], proofs: list[PhaseRecord]) -> Markup:
    heading = join(element("h3", f"Phase {name}"), element("p", str(phase.get("title", "")), class_="title"))
    if not proofs:
        text = "No proof on record for this phase."
        return element("article", heading, element("p", text, class_="warn"), class_="card")
    # The newest: a resume proves again, and its figures must be the same.
    proof = proofs[-1]
    sizes = _sizes(run, name, proof)
    total = proof.trainable + proof.frozen
    rows = [_row("train", proof.trainable, total), _row("frozen, bit-equal", proof.frozen, total)]
    if proof.compared is not None:
        rows += [_row("looked at one by one", proof.compared, total), _row("of these, moved", proof.moved, total)]
    return element(
        "article",
        heading,
        _bar(run, sizes, total),
        element("table", element("tbody", rows), class_="figures"),
        element("ul", [_group(run, group, size, name) for group, size in sizes.items()], class_="groups"),
        element("p", _when(proofs, start), class_="note"),
        class_="card",
    )


def _sizes(run: RunHistory, name: str, proof: PhaseRecord) -> dict[str, int]:
    """Weights by module group; one nameless part if the run did not write them down."""
    return run.facts.get("trainable_weights", {}).get(name) or {"trained": proof.trainable}


def _row(name: str, weights: int, total: int) -> Markup:
    cells = (f"{weights:,}", percent(weights / max(total, 1)))
    return element("tr", element("th", name, scope="row"), [element("td", cell) for cell in cells])


def _bar(run: RunHistory, sizes: dict[str, int], total: int) -> Markup:
    """All weights of the model on one bar: the groups that train in their colors, the rest hatched."""
    colors, start, parts = group_colors(run), 0.0, []
    for group, size in sizes.items():
        share = 100 * size / max(total, 1)
        parts.append(
            element("rect", x=f"{start:.3f}%", width=f"{share:.3f}%", height=22, class_=f"bar {_css(colors, group)}")
        )
        start += share
    rest = element("rect", x=f"{start:.3f}%", width=f"{max(100 - start, 0):.3f}%", height=22, fill="url(#hatch)")
    words = f"{percent(start / 100)} of {total:,} weights train"
    return element("svg", rest, parts, width="100%", height=22, role="img", aria_label=words, class_="weights")


def _css(colors: dict[str, int], group: str) -> str:
    return f"c{colors.get(group, 0) % COLORS + 1}"


def _group(run: RunHistory, group: str, size: int, phase: str) -> Markup:
    rate = max((step.lr.get(group, 0.0) for step in run.steps if step.phase == phase), default=0.0)
    text = f"{size:,} at up to {scientific(rate)}" if rate else f"{size:,}"
    key = element("svg", element("rect", width=12, height=12, class_="bar"), viewBox="0 0 12 12", class_="swatch")
    return element("li", key, f"{group} ", element("span", text), class_=_css(group_colors(run), group))


def _when(proofs: list[PhaseRecord], start: int) -> str:
    """On which step: the event carries the steps done before the one that is proved."""
    at_start = [proof for proof in proofs if proof.step == start]
    again = len(proofs) - len(at_start)
    text = f"Proved on step {start + 1:,}, the phase's first" if at_start else f"Proved on step {proofs[-1].step + 1:,}"
    return f"{text}; again after {count(again, 'resume')}." if at_start and again else f"{text}."
