"""From a step's number to this rank's packed micro-batches: decoded and laid out by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hebrew_asr.audio.augment import clip_seed, draw_speed
from hebrew_asr.audio.decode import decode, to_int16
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.data.collate import Example, PackedBatch, pack
from hebrew_asr.data.manifest import Clip
from hebrew_asr.data.sampler import StepSampler
from hebrew_asr.errors import DataError
from hebrew_asr.recipe import Recipe
from hebrew_asr.text.prompt import PromptTokens, target_ids


@dataclass(frozen=True)
class LoadedMicroBatch:
    """One micro-batch and the supervised tokens that count; 0 for one that only keeps ranks in step."""

    packed: PackedBatch
    num_labels: int

    def pin_memory(self) -> LoadedMicroBatch:
        """In page-locked memory; the DataLoader calls it."""
        return replace(self, packed=self.packed.pin_memory())


@dataclass(frozen=True)
class LoadedStep:
    """What one rank trains in one optimizer step, or why it cannot."""

    step: int
    micro_batches: list[LoadedMicroBatch]
    error: str | None = None

    def pin_memory(self) -> LoadedStep:
        """In page-locked memory; the DataLoader calls it."""
        return replace(self, micro_batches=[micro.pin_memory() for micro in self.micro_batches])


class StepDataset(Dataset[LoadedStep]):
    """Optimizer steps of one rank, by number."""

    def __init__(
        self,
        clips: list[Clip],
        sampler: StepSampler,
        recipe: Recipe,
        tokenizer: Any,
        geometry: EncoderGeometry,
        rank: int,
    ):
        """``clips`` in manifest order, as ``sampler`` counts them."""
        self._clips, self._sampler, self._rank = clips, sampler, rank
        self._seed, self._augmentation = recipe.seed, recipe.augmentation
        self._tokenizer, self._prompt, self._geometry = tokenizer, PromptTokens.of(tokenizer), geometry

    def clips_of_step(self, step: int) -> list[int]:
        """Indices of the whole global batch of a step."""
        return self._sampler.clips_of_step(step)

    def __getitem__(self, step: int) -> LoadedStep:
        """Decode and pack this rank's share; an unreadable clip is reported in ``error``."""
        epoch = step // self._sampler.steps_per_epoch
        try:
            dealt = self._sampler.deal(step)[self._rank]
            return LoadedStep(step, [self._pack(indices, epoch, step) for indices in dealt])
        except DataError as error:  # raised here it would reach the trainer as a page of worker traceback
            return LoadedStep(step, [], str(error))

    def _pack(self, indices: list[int], epoch: int, step: int) -> LoadedMicroBatch:
        chosen = indices or self._sampler.clips_of_step(step)[:1]
        examples = [self._example(self._clips[index], epoch) for index in chosen]
        packed = pack(examples, self._prompt, self._geometry, self._augmentation)
        return LoadedMicroBatch(packed, packed.num_labels if indices else 0)

    def _example(self, clip: Clip, epoch: int) -> Example:
        seed = clip_seed(self._seed, epoch, clip.id)
        return Example(
            clip.id,
            to_int16(decode(clip.audio)),
            target_ids(self._tokenizer, clip.text),
            draw_speed(seed, self._augmentation.speed_factors),
            seed,
        )


def load_steps(dataset: StepDataset, first: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[LoadedStep]:
    """Steps ``first`` to ``stop`` in order, read ahead by ``workers`` processes.

    Raises:
        DataError: a clip of the next step cannot be decoded.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        multiprocessing_context="fork" if workers else None,
    )
    for loaded in loader:
        if loaded.error is not None:
            raise DataError(f"step {loaded.step}: {loaded.error}")
        yield loaded


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
