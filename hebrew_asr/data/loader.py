"""From a step's number to this rank's packed micro-batches: decoded and laid out by worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from hebrew_asr.audio.augment import clip_seed
from hebrew_asr.audio.decode import to_int16
from hebrew_asr.audio.frames import SAMPLE_RATE_HZ, EncoderGeometry
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.data.clip_audio import Unreadable, read_ahead, read_clip
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.collate import Example, PackedBatch, pack
from hebrew_asr.data.sampler import Draw
from hebrew_asr.data.shapes import Shape
from hebrew_asr.data.steps import Steps
from hebrew_asr.errors import DataError, EnvironmentProblem, HebrewASRError, first_line
from hebrew_asr.text.prompt import target_ids


@dataclass(frozen=True)
class MicroBatch:
    """The clips of one forward and backward pass on one rank."""

    packed: PackedBatch
    num_labels: int
    """Supervised tokens that count; 0 for a micro-batch that only keeps this rank in step with the others."""
    mel_CBF: torch.Tensor | None = None
    """Log-mel features of ``packed``; None until it is on the device that makes them."""


@dataclass(frozen=True)
class StepBatch:
    """What one rank trains in one optimizer step, or why it cannot."""

    step: int
    """From 0."""
    micro_batches: list[MicroBatch]
    """Every rank has as many."""
    skipped: tuple[Unreadable, ...] = ()
    """Clips of this rank's share that could not be decoded, and are not in it."""
    error: HebrewASRError | None = None
    """Why there are no micro-batches at all."""
    wait_s: float = 0.0
    """How long the training thread waited for it."""

    def pin_memory(self) -> StepBatch:
        """The step in page-locked memory; the DataLoader calls this."""
        return replace(self, micro_batches=[replace(m, packed=m.packed.pin_memory()) for m in self.micro_batches])


class StepDataset(Steps, Dataset[StepBatch]):
    """Optimizer steps of one rank, by number."""

    def __init__(
        self,
        clips: Sequence[Clip],
        batching: Batching,
        recipe: Recipe,
        tokenizer: Any,
        geometry: EncoderGeometry,
        rank: int,
    ):
        """As ``Steps``, for the clips that are assigned to ``rank``."""
        super().__init__(clips, batching, recipe, tokenizer, geometry)
        self._rank, self._augmentation = rank, recipe.augmentation

    def __getitem__(self, index: int) -> StepBatch:
        """Decode and pack this rank's share, without the clips that cannot be decoded."""
        step, skipped = index, list[Unreadable]()
        try:
            dealt = self._sampler.deal(step)
            own = dealt[self._rank]
            read_ahead(self._clips[draw.clip] for draws in own for draw in draws)
            offered = self._shapes_of(step, dealt)
            micro_batches = [self._pack(*one, step, skipped) for one in zip(own, offered, strict=True)]
            return StepBatch(step, _shared(micro_batches), tuple(skipped))
        except HebrewASRError as error:  # raised here it would reach the trainer as a page of worker traceback
            return StepBatch(step, [], error=error)

    def _pack(self, draws: list[Draw], shapes: Sequence[Shape], step: int, skipped: list[Unreadable]) -> MicroBatch:
        examples = [self._example(draw, step, skipped) for draw in draws]
        readable = [example for example in examples if example is not None]
        packed = pack(readable or [self._any_example(step)], self._prompt, self._geometry, self._augmentation, shapes)
        return MicroBatch(packed, packed.num_labels if readable else 0)

    def _any_example(self, step: int) -> Example:
        """Some readable clip of the step, for a micro-batch that has none of its own and must still run."""
        failures: list[Unreadable] = []
        for draw in self._sampler.draws_of_step(step):
            example = self._example(draw, step, failures)
            if example is not None:
                return example
        raise DataError(f"no clip of step {step} can be decoded, the first because: {failures[0]}")

    def _example(self, draw: Draw, step: int, skipped: list[Unreadable]) -> Example | None:
        """The clip, decoded; None, with the reason added to ``skipped``, if it cannot be."""
        clip = self._clips[draw.clip]
        samples = read_clip(clip)
        if isinstance(samples, Unreadable):
            skipped.append(samples)
            return None
        seed = clip_seed(self._seed, step // self._sampler.steps_per_epoch, clip.id, draw.times_before)
        speed = self._speed(round(clip.duration_s * SAMPLE_RATE_HZ), seed)
        return Example(clip.id, to_int16(samples), target_ids(self._tokenizer, clip.text), speed, seed)


def _shared(micro_batches: list[MicroBatch]) -> list[MicroBatch]:
    """In memory that the trainer sees too, where another process packed them.

    Without that, torch copies them there in a thread, and when there is no room the trainer waits for ever.
    """
    if get_worker_info() is None:
        return micro_batches
    try:
        return [replace(m, packed=m.packed.share_memory()) for m in micro_batches]
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"/dev/shm is full, through which loader processes hand over steps ({first_line(error)}): make it larger "
            "(docker run --shm-size=8g, or --ipc=host), or load without them (--set data.workers=0)"
        ) from error
