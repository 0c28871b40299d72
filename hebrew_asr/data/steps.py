"""The steps of a run before anything is decoded: whose clips, how fast they are played, how large the batches are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from hebrew_asr.audio.augment import allowed_speeds, clip_seed, draw_speed, perturbed_length, slowest_speeds
from hebrew_asr.audio.frames import SAMPLE_RATE_HZ, EncoderGeometry
from hebrew_asr.config.profiles import Batching
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.data.shapes import NUM_SHAPES, Shape, choose_shapes, needed_shape
from hebrew_asr.text.prompt import PromptTokens, target_lengths

_SAMPLED_STEPS = 200
_LONGEST_CLIPS = 32


class Steps:
    """Optimizer steps by number, as all ranks see them; needs no torch."""

    def __init__(
        self, clips: Sequence[Clip], batching: Batching, recipe: Recipe, tokenizer: Any, geometry: EncoderGeometry
    ):
        """``clips`` in manifest order; ``batching`` distributes them over ranks and micro-batches."""
        self._clips, self._seed = Clips.of(clips), recipe.seed
        self._sampler = StepSampler(self._clips.durations_s, batching, recipe.seed)
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

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take every clip once."""
        return self._sampler.steps_per_epoch

    def fix_shapes(self, total_steps: int, count: int = NUM_SHAPES, sampled_steps: int = _SAMPLED_STEPS) -> list[Shape]:
        """Pad micro-batches to at most ``count`` shapes from now on, for a compiled model.

        They are chosen from the manifest's durations and texts, over ``sampled_steps`` spread evenly through the run,
        so every rank and every resumed run chooses alike. Call it before workers start.
        """
        bounds = self._needed([([clip], [min(self._speeds(clip))]) for clip in self._longest()])
        longest_clip = max(bound.longest_clip for bound in bounds)
        longest_window = max(bound.longest_window for bound in bounds)
        steps = np.unique(np.linspace(0, total_steps - 1, sampled_steps).astype(int)).tolist()
        needed = self._needed_at(
            [(step, indices) for step in steps for rank in self._sampler.deal(step) for indices in rank if indices]
        )
        needed = [replace(one, longest_clip=longest_clip, longest_window=longest_window) for one in needed]
        self._shape_limits = total_steps, count
        self._shapes = choose_shapes(needed, count)
        return self._shapes

    def _longest(self) -> list[Clip]:
        """The clips that take longest where each is played as slowly as it may be."""
        durations_s = self._clips.durations_s
        samples = np.rint(durations_s * SAMPLE_RATE_HZ).astype(np.int64)
        played_s = durations_s / slowest_speeds(samples, self._speed_factors, self._longest_samples)
        least = np.partition(played_s, -_LONGEST_CLIPS)[-_LONGEST_CLIPS] if len(played_s) > _LONGEST_CLIPS else 0.0
        candidates = np.flatnonzero(played_s >= least)
        order = candidates[np.argsort(-played_s[candidates], kind="stable")]
        return [self._clips[index] for index in order[:_LONGEST_CLIPS].tolist()]

    def _needed_at(self, dealt: list[tuple[int, list[int]]]) -> list[Shape]:
        """What micro-batches take, each by its step and the indices of its clips."""
        batches = []
        for step, indices in dealt:
            clips, epoch = [self._clips[index] for index in indices], step // self._sampler.steps_per_epoch
            batches.append((clips, [self._speed(clip, epoch) for clip in clips]))
        return self._needed(batches)

    def _needed(self, batches: list[tuple[list[Clip], list[float]]]) -> list[Shape]:
        """What batches of clips take, played at these speeds. One call of the tokenizer is much faster than many."""
        texts = list(dict.fromkeys(clip.text for clips, _ in batches for clip in clips))
        labels = dict(zip(texts, target_lengths(self._tokenizer, texts), strict=True))
        return [
            needed_shape(
                [perturbed_length(_samples(clip), speed) for clip, speed in zip(clips, speeds, strict=True)],
                [labels[clip.text] for clip in clips],
                self._prompt,
                self._geometry,
            )
            for clips, speeds in batches
        ]

    def _speed(self, clip: Clip, epoch: int) -> float:
        return draw_speed(clip_seed(self._seed, epoch, clip.id), self._speeds(clip))

    def _speeds(self, clip: Clip) -> tuple[float, ...]:
        """What may be drawn: a clip that is played slower than it was spoken stays as short as any clip must be."""
        return allowed_speeds(_samples(clip), self._speed_factors, self._longest_samples)

    def clips_of_step(self, step: int) -> list[int]:
        """Indices of the whole global batch of a step."""
        return self._sampler.clips_of_step(step)


def _samples(clip: Clip) -> int:
    """As its manifest has it: known before the clip is decoded."""
    return round(clip.duration_s * SAMPLE_RATE_HZ)
