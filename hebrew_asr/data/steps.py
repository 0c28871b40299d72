"""The steps of a run before anything is decoded: whose clips, how fast they are played, how large the batches are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, Self

import numpy as np
import pyarrow

from hebrew_asr.audio.augment import allowed_speeds, clip_seed, draw_speed, perturbed_length
from hebrew_asr.audio.frames import SAMPLE_RATE_HZ, EncoderGeometry
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.data.clips import Clip, Clips, array_of
from hebrew_asr.data.mixture import Mixture
from hebrew_asr.data.sampler import Draw, StepSampler
from hebrew_asr.data.shapes import NUM_SHAPES, Shape, choose_shapes, holding_all, needed_shape
from hebrew_asr.text.prompt import PromptTokens, target_lengths

_SAMPLED_STEPS = 200


class Steps:
    """Optimizer steps by number, as all ranks see them; needs no torch."""

    def __init__(
        self, clips: Sequence[Clip], batching: Batching, recipe: Recipe, tokenizer: Any, geometry: EncoderGeometry
    ):
        """``clips`` in manifest order; ``batching`` distributes them over ranks and micro-batches.

        Raises UsageError where the recipe weighs data sets that are not there.
        """
        self._clips, self._seed = Clips.of(clips), recipe.seed
        self.mixture = Mixture.of(self._clips, recipe)
        """Of data sets; None where each clip comes once an epoch."""
        drawn = None if self.mixture is None else self.mixture.clips
        self._sampler = StepSampler(self._clips.durations_s, batching, recipe.seed, drawn)
        self._speed_factors = recipe.augmentation.speed_factors
        self._longest_samples = round(recipe.data.max_duration_s * SAMPLE_RATE_HZ)
        self._tokenizer, self._prompt, self._geometry = tokenizer, PromptTokens.of(tokenizer), geometry
        self._shapes: list[Shape] = []
        self._shape_limits: tuple[int, int] | None = None

    def with_batching(self, batching: Batching) -> Self:
        """The same clips at every step, in other micro-batches."""
        other = copy.copy(self)
        other._sampler = self._sampler.with_batching(batching)
        if other._shape_limits is not None:
            other.fix_shapes(*other._shape_limits)
        return other

    def longest_step(self, last_step: int) -> int:
        """The one of the first ``last_step`` that has most sound."""
        return self._sampler.longest_step(last_step)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many clips as there are."""
        return self._sampler.steps_per_epoch

    def fix_shapes(
        self, total_steps: int, count: int = NUM_SHAPES, sampled_steps: int = _SAMPLED_STEPS, ranks: Any = None
    ) -> list[Shape]:
        """Pad micro-batches to at most ``count`` shapes from now on, for a compiled model.

        They are chosen from the manifest's durations and texts, over ``sampled_steps`` spread evenly through the run,
        so every rank and every resumed run chooses alike. Call it before workers start. ``ranks``
        (:class:`hebrew_asr.engine.dist.Ranks`), if given, share the steps among them; collective then.
        """
        steps = np.unique(np.linspace(0, total_steps - 1, sampled_steps).astype(int)).tolist()
        own = steps if ranks is None else np.array_split(steps, ranks.size)[ranks.rank].tolist()
        found = self._needed_together(own)
        everyone = [found] if ranks is None else ranks.gather(found)
        needed = [together for part in everyone for together in part if together]
        self._shape_limits = total_steps, count
        self._shapes = choose_shapes(needed, count)
        return self._shapes

    def _shapes_of(self, step: int, dealt: list[list[list[Draw]]]) -> list[Sequence[Shape]]:
        """For each micro-batch of a rank, shapes that hold it on every rank; ``dealt`` by [rank][micro-batch]."""
        if not self._shapes or len(dealt) == 1:
            return [self._shapes] * len(dealt[0])
        return [holding_all(together, self._shapes) for together in self._needed_together([step])]

    def _needed_together(self, steps: list[int]) -> list[list[Shape]]:
        """What the micro-batches of these steps take, each with those that run at the same time on other ranks."""
        columns = [(step, of_ranks) for step in steps for of_ranks in zip(*self._sampler.deal(step), strict=True)]
        batches = [draws for _, of_ranks in columns for draws in of_ranks if draws]
        if not batches:
            return [[] for _ in columns]
        chosen, times_before = np.concatenate(batches).T
        epochs = [step // self.steps_per_epoch for step, of_ranks in columns for draws in of_ranks for _ in draws]
        seeds = map(partial(clip_seed, self._seed), epochs, self._of("id", chosen), times_before.tolist())
        speeds = list(map(self._speed, self._samples(chosen).tolist(), seeds))
        needed = iter(self._needed(batches, np.asarray(speeds)))
        return [[next(needed) for draws in of_ranks if draws] for _, of_ranks in columns]

    def _needed(self, batches: list[list[Draw]], speeds_N: np.ndarray) -> list[Shape]:
        """What batches of clips take, played at these speeds. One call of the tokenizer is much faster than many."""
        chosen = np.concatenate(batches)[:, 0]
        played = self._samples(chosen)
        for speed in np.unique(speeds_N).tolist():
            at_speed = speeds_N == speed
            played[at_speed] = perturbed_length(played[at_speed], speed)
        texts = self._of("text", chosen)
        distinct = list(dict.fromkeys(texts))
        labels = dict(zip(distinct, target_lengths(self._tokenizer, distinct), strict=True))
        lengths = zip(played.tolist(), (labels[text] for text in texts), strict=True)
        of_batches = (list(islice(lengths, len(batch))) for batch in batches)
        return [
            needed_shape([samples for samples, _ in own], [labels for _, labels in own], self._prompt, self._geometry)
            for own in of_batches
        ]

    def _of(self, column: str, indices: np.ndarray) -> list[Any]:
        return self._clips.column(column).take(array_of(indices, pyarrow.int64())).to_pylist()

    def _samples(self, indices: np.ndarray) -> np.ndarray:
        """As the manifest has them: known before a clip is decoded."""
        return np.rint(self._clips.durations_s[indices] * SAMPLE_RATE_HZ).astype(np.int64)

    def _speed(self, samples: int, seed: int) -> float:
        """A clip that is played slower than it was spoken stays as short as any clip must be."""
        return draw_speed(seed, allowed_speeds(samples, self._speed_factors, self._longest_samples))

    def clips_of_step(self, step: int) -> list[int]:
        """Indices of the whole global batch of a step."""
        return self._sampler.clips_of_step(step)
