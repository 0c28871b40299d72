"""The top of the page: what came out, and measured on what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from hebrew_asr.pages.markup import Markup, element, join
from hebrew_asr.pages.words import duration, percent, quantity
from hebrew_asr.report.analysis import Scored, interval, score
from hebrew_asr.report.curves import FULL_SPLIT
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.records import EvalRecord
from hebrew_asr.units import count


@dataclass(frozen=True)
class Result:
    """First and last evaluation, counted again from their samples where there are any."""

    first: EvalRecord
    last: EvalRecord
    first_scored: Scored | None
    last_scored: Scored | None

    @property
    def is_single(self) -> bool:
        """Whether there is one evaluation only, and so nothing to compare."""
        return self.first is self.last

    @property
    def compared(self) -> tuple[float, float, int] | None:
        """First and last WER of the same clips, and how many those are; None if no two rates are of the same clips."""
        first, last = self.first, self.last
        if self.is_single:
            return None
        if first.split == last.split or first.clips == last.clips:
            return first.wer, last.wer, last.clips
        if first.split == "sample" and last.sample_wer is not None and last.sample_clips == first.clips:
            return first.wer, last.sample_wer, first.clips
        return None


def result(run: RunHistory) -> Result | None:
    """None for a run that was never evaluated."""
    if not run.evaluations:
        return None
    first, last = run.evaluations[0], run.chosen or run.evaluations[-1]
    return Result(first, last, score(run, first), score(run, last))


def headline(run: RunHistory, found: Result | None) -> Markup:
    """Figures, the sentence that says what they are, and tiles."""
    state = "finished" if run.is_finished else "unfinished"
    title = element("h1", run.name, " ", element("span", state, class_=f"state {state}"))
    eyebrow = element("p", "Training report", class_="eyebrow")
    return element("header", eyebrow, title, _rates(run, found), _tiles(run))


def _rates(run: RunHistory, found: Result | None) -> Markup:
    if found is None:
        return element("p", "No evaluation yet: the run has measured no word error rate.", class_="lead")
    spread = interval(run, found.last_scored) if found.last_scored else None
    arrow = element("div", "→", class_="arrow", role="img", aria_label="to")
    figures = [element("div", "WER", class_="name")]
    if found.compared is None:
        figures.append(_rate(run, found.last, found.last.wer, found.last.clips, class_="last"))
    else:
        first, last, clips = found.compared
        figures += [_rate(run, found.first, first, clips), arrow]
        figures.append(_rate(run, found.last, last, clips, class_="last"))
    return join(
        element("div", figures, class_="rates"), element("p", _sentence(found, spread), _compared(run), class_="lead")
    )


def _rate(run: RunHistory, evaluation: EvalRecord, wer: float, clips: int, class_: str | None = None) -> Markup:
    size = count(clips, "clip").replace(" ", "\u00a0")
    about = f"{_when(run, evaluation)}, {size}"
    return element("div", element("b", percent(wer)), element("span", about), class_=class_)


def _when(run: RunHistory, evaluation: EvalRecord) -> str:
    if evaluation.step == 0:
        return "before training"
    if evaluation is run.chosen:
        return f"final, {run.final_title}"
    if run.is_finished and evaluation.step == run.last_step:
        return f"final, step {evaluation.step:,}"
    return f"step {evaluation.step:,}"


def split_name(evaluation: EvalRecord) -> str:
    """What an evaluation's split is called in a sentence."""
    if evaluation.split == FULL_SPLIT or evaluation.is_of_chosen:
        return "the whole eval split"
    return "a sample of the eval split" if evaluation.split == "sample" else f"split {evaluation.split}"


def _sentence(found: Result, spread: tuple[float, float, int | None] | None) -> str:
    """What the figures are: split, clips, normalizer, spread."""
    last = found.last
    size = f"{count(last.clips, 'clip')}, {count(last.words, 'word')}"
    text = f"Measured on {split_name(last)} ({size}), {last.wer_mode} normalizer; CER {percent(last.cer)}."
    if found.compared is not None and found.compared[2] != last.clips:
        above = f"Above: the same {count(found.compared[2], 'clip')} of a sample, before and after."
        text = f"{above} WER {percent(last.wer)} in the last evaluation, m{text[1:]}"
    if spread is None:
        return text
    low, high, groups = spread
    text += f" {percent(0.95, 0)} interval of the WER {percent(low)} to {percent(high)}, by bootstrap over "
    if groups:
        return f"{text}{groups} speakers or sources."
    return f"{text}clips; errors of one speaker go together, so the true one is wider."


def _compared(run: RunHistory) -> str:
    """Which model the final one is, and what it was chosen among."""
    final = run.summary.get("final")
    compared = final.get("compared") if isinstance(final, dict) and run.is_finished else None
    if not compared:
        return ""
    rates = ", ".join(f"{title} {percent(figures['wer'])}" for title, figures in compared.items())
    return f" The final model is the best by WER on the whole eval split of: {rates}; chosen: {run.final_title}."


def _tiles(run: RunHistory) -> Markup:
    tiles = [("steps", *_steps(run)), *_time(run), *_throughput(run), ("machine", *_machine(run)), *_data(run)]
    rows = [
        element("div", element("dt", name), element("dd", value, element("small", more))) for name, value, more in tiles
    ]
    return element("dl", rows, class_="tiles")


def _steps(run: RunHistory) -> tuple[str, str]:
    epochs = max((step.epoch for step in run.steps), default=0)
    planned = sum(phase.get("epochs", 0) for phase in run.recipe.get("phases", []))
    more = f"epoch {epochs} of {planned}" if planned else f"epoch {epochs}"
    if run.last_step < run.planned_steps:
        more = f"of {run.planned_steps:,}; {more}"
    return f"{run.last_step:,}", more


def _time(run: RunHistory) -> list[tuple[str, str, str]]:
    """Wall time of the whole run if it is known, and how much of it the steps took."""
    in_steps = sum(step.step_s for step in run.steps)
    total = run.summary.get("seconds") if run.is_finished else None
    if not total:
        return [("time", duration(in_steps), "in training steps so far")] if run.steps else []
    return [("time", duration(total), f"{percent(min(in_steps / total, 1), 0)} of it in training steps")]


def _throughput(run: RunHistory) -> list[tuple[str, str, str]]:
    timed = [step for step in run.steps if step.step_s > 0]
    if not timed:
        return []
    rate = median(step.clips / step.step_s for step in timed)
    speed = median(step.audio_s / step.step_s for step in timed)
    more = f"median step; audio at {quantity(speed)}\u00a0×\u00a0real\u00a0time"
    waits = [step.data_wait_s for step in timed if step.data_wait_s is not None]
    if waits:
        more += f"; {percent(sum(waits) / sum(step.step_s for step in timed))} waiting for data"
    return [("clips/s", quantity(rate), more)]


def _machine(run: RunHistory) -> tuple[str, str]:
    devices = Counter(run.facts.get("devices", []))
    if not devices:
        return "not on record", ""
    ranks = run.facts.get("num_ranks")
    on_cpu = set(devices) == {"cpu"}
    named = [f"{times}\u00a0×\u00a0{name}" if len(devices) > 1 else name for name, times in devices.items()]
    more = [] if on_cpu else named
    more += [count(ranks, "rank")] if ranks else []
    stage = run.profile.get("zero_optimization", {}).get("stage")
    precision = "bf16" if run.profile.get("bf16", {}).get("enabled") else "fp32"
    more += [f"ZeRO-{stage}, {precision}"] if stage is not None else []
    return "CPU" if on_cpu else count(devices.total(), "GPU"), ", ".join(more)


def _data(run: RunHistory) -> list[tuple[str, str, str]]:
    clips, hours = run.facts.get("train_clips"), run.facts.get("train_hours")
    if not clips:
        return []
    return [("training data", count(clips, "clip"), f"{quantity(hours)}\u202fh of speech" if hours else "")]
