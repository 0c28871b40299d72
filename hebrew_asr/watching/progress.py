"""Where a run is, from its records: trends of loss and WER, time that is left, memory, cost so far."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median

from hebrew_asr.config.recipe import Recipe
from hebrew_asr.report.records import EvalRecord, MachineRecord, Record, TrainRecord

TREND_STEPS = 50
"""A trend of the loss is the mean of so many steps against that of as many before them."""
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run is to do, and what it did before this session."""

    recipe: Recipe
    steps_per_epoch: int
    last_step: int
    eval_clips: int
    """Clips of the whole evaluation split."""
    done_steps: int = 0
    seconds_before: float = 0.0
    rates: tuple[tuple[int, float], ...] = ()
    """Step and WER of the sample, of earlier sessions' evaluations as far as they are known."""

    def evaluations_after(self, step: int) -> list[tuple[int, bool]]:
        """Steps after ``step`` that are evaluated, in order, and whether that is on the whole split."""
        settings = self.recipe.evaluation
        whole = set(_multiples(self.steps_per_epoch, step, self.last_step)) if settings.full_each_epoch else set()
        of_sample = {
            *_multiples(settings.every_steps, step, self.last_step),
            *([self.last_step] * (step < self.last_step)),
        }
        return [(later, later in whole) for later in sorted(whole | of_sample)]


def _multiples(of: int, after: int, last: int) -> range:
    return range(of * (after // of + 1), last + 1, of)


class Progress:
    """Takes records; what is not known yet is None. Seconds left are those after the last record that was taken."""

    def __init__(self, course: Course):
        """The clock starts here."""
        self.course = course
        self.step: TrainRecord | None = None
        """The last."""
        self.evaluation: EvalRecord | None = None
        """The last."""
        self.memory_gib: dict[str, float] = {}
        """Peak memory of the fullest GPU in each phase, in the order of the phases."""
        self.rates = list(course.rates)
        """Step and WER of the sample, of every evaluation."""
        self._losses: deque[float] = deque(maxlen=2 * TREND_STEPS)
        self._paced: deque[TrainRecord] = deque(maxlen=TREND_STEPS)
        """The last steps of one phase, without its first."""
        self._clip_s: dict[str, float] = {}
        self._started = self._taken = time.monotonic()

    def take(self, record: Record) -> None:
        """Take the next record of the run."""
        self._taken = time.monotonic()
        if isinstance(record, TrainRecord):
            if self.step is not None and self.step.phase == record.phase:
                if self._paced and self._paced[-1].phase != record.phase:
                    self._paced.clear()
                self._paced.append(record)
            self.step = record
            if math.isfinite(record.loss):
                self._losses.append(record.loss)
        elif isinstance(record, EvalRecord):
            self.evaluation = record
            self.rates.append((record.step, record.wer if record.sample_wer is None else record.sample_wer))
            if record.eval_s is not None:
                self._clip_s[record.split] = record.eval_s / record.clips
        elif isinstance(record, MachineRecord) and record.memory_gib:
            most = max(record.memory_gib)
            self.memory_gib[record.phase] = max(most, self.memory_gib.get(record.phase, 0.0))

    @property
    def seconds(self) -> float:
        """Wall time of this session and of those before."""
        return self.course.seconds_before + time.monotonic() - self._started

    @property
    def cost(self) -> float | None:
        """What these seconds cost, in the currency of the price."""
        price = self.course.recipe.logging.price_per_hour
        return None if price is None else price * self.seconds / 3600

    @property
    def clips_per_s(self) -> float | None:
        """The median clips of the last steps by their median time; None as long as ``step_s`` is."""
        pace = self.step_s
        return None if not pace else median(step.clips for step in self._paced) / pace

    @property
    def step_s(self) -> float | None:
        """Seconds of a step: the median of the last ones. A phase's first step may compile for a minute, and does not
        count: after it these are the phase before's, or None."""
        return median(step.step_s for step in self._paced) if self._paced else None

    @property
    def loss_trend(self) -> tuple[float, float, int] | None:
        """Mean loss of the last steps and of as many before, and how many these are; None until there are two each."""
        count = len(self._losses) // 2
        if count < 2:
            return None
        losses = list(self._losses)[-2 * count :]
        return fmean(losses[count:]), fmean(losses[:count]), count

    @property
    def best_rate(self) -> tuple[int, float] | None:
        """Step and WER of the sample where that is lowest; of equals, the last."""
        return min(reversed(self.rates), key=lambda rate: rate[1], default=None)

    def seconds_to_evaluation(self) -> float | None:
        """Until the next one begins; None where none will."""
        done = self._done
        following = next(iter(self.course.evaluations_after(done)), None)
        pace = self.step_s
        return None if following is None or pace is None else self._less(pace * (following[0] - done))

    def seconds_to_end(self) -> float | None:
        """Steps at the pace of this phase, and evaluations at that of the last one; a later phase may be slower."""
        pace, done = self.step_s, self._done
        steps = self.course.last_step - done
        if pace is None and steps:
            return None
        left = (pace or 0.0) * steps
        for _, whole in self.course.evaluations_after(done):
            split = "eval" if whole else "sample"
            per_clip = self._clip_s.get(split) or max(self._clip_s.values(), default=0.0)
            sample = min(self.course.recipe.evaluation.sample_clips, self.course.eval_clips)
            left += per_clip * (self.course.eval_clips if whole else sample)
        return self._less(left)

    @property
    def _done(self) -> int:
        return self.course.done_steps if self.step is None else self.step.step

    def _less(self, seconds: float) -> float:
        return max(0.0, seconds - (time.monotonic() - self._taken))


def sparkline(values: list[float], width: int) -> str:
    """The last ``width`` values as bars between their lowest and highest."""
    shown = list(islice(values, max(0, len(values) - width), None))
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join(_LEVELS[round((value - low) / ((high - low) or 1.0) * (len(_LEVELS) - 1))] for value in shown)


def clock(seconds: float) -> str:
    """``3725`` as ``1:02:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
