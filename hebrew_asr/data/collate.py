"""Decoded clips to one packed batch: everything lies end to end, and nothing is padded clip by clip.

The tokens before the sound are the same in every clip, and no token there sees anything else, so whatever the language
model makes of them is the same too: they are laid down once, as the batch's opening, which every clip attends to.

For a compiled model the batch as a whole can be padded to one of a few shapes (:mod:`hebrew_asr.data.shapes`): segments
of padding follow the last clip, with no label among them. Lists describe the clips only.

Every length is known on the host, so neither the model nor the loop ever asks the device for one. What is supervised
follows from lengths too, never from token ids: pad may equal end-of-turn.

Dimension letters: S samples, N clips, C chunks of mel, A audio tokens, W encoder windows, T tokens of the language
model, L supervised tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hebrew_asr.audio.augment import Masks, draw_masks, no_masks, perturbed_length
from hebrew_asr.audio.frames import TOKENS_PER_CHUNK, EncoderGeometry, num_audio_tokens, num_chunks, num_frames
from hebrew_asr.audio.mel import MelPlan, plan_mel
from hebrew_asr.config.recipe import Augmentation
from hebrew_asr.data.bundled import Bundled
from hebrew_asr.data.shapes import Shape, cut_windows, fill, fitting, packed_shape
from hebrew_asr.text.prompt import PromptTokens

IGNORED = -100
"""Label without a loss; what ``torch.nn.functional.cross_entropy`` ignores by default."""


@dataclass(frozen=True)
class Example:
    """One decoded clip with its target."""

    clip_id: str
    samples: np.ndarray
    """(samples,) int16, mono 16 kHz, as recorded."""
    target_ids: list[int]
    """Ids of ``language Hebrew<asr_text>{transcript}<|im_end|>``."""
    speed: float = 1.0
    """Tempo to play it at."""
    mask_seed: int | None = None
    """Seed of its SpecAugment masks; None leaves the clip unmasked."""


@dataclass(frozen=True)
class PackedBatch(Bundled):
    """N clips end to end. Tensors are moved together; lists and integers stay on the host."""

    clip_ids: list[str]
    samples: list[int]
    """Per clip, after speed perturbation."""
    frames: list[int]
    """Mel frames per clip."""
    audio_tokens: list[int]
    """Encoder outputs per clip."""
    opening_tokens: int
    """Tokens before the sound, which all clips share."""
    tokens: list[int]
    """Tokens per clip in the language model, without the opening."""
    labels_per_clip: list[int]

    waveform_S: Tensor
    """int16, as recorded."""
    mel: MelPlan
    conv_positions_A: Tensor
    """Which of the chunks' 13 x C convolution outputs are sound."""
    window_cu_seqlens_W1: Tensor
    """int32 bounds of the encoder's attention windows in A; every window holds at least one token."""
    input_ids_T: Tensor
    position_ids_T: Tensor
    """From 0 in the opening, and on from there in each clip."""
    audio_positions_A: Tensor
    """Where the encoder outputs belong in T."""
    clip_cu_seqlens_N2: Tensor
    """int32 bounds in T: of the opening, then of the clips."""
    supervised_positions_L: Tensor
    """The position before each target token: its hidden state predicts that token."""
    labels_L: Tensor
    """``IGNORED`` where a padded batch has no label."""

    @property
    def num_labels(self) -> int:
        """Supervised tokens, the divisor of the summed loss."""
        return sum(self.labels_per_clip)

    @property
    def shape(self) -> Shape:
        """Its sizes, padding among them."""
        return Shape(
            tokens=len(self.input_ids_T),
            audio_tokens=len(self.conv_positions_A),
            chunks=len(self.mel.clip_C) + self.mel.padding_chunks,
            windows=len(self.window_cu_seqlens_W1) - 1,
            clips=len(self.clip_cu_seqlens_N2) - 2,
            labels=len(self.labels_L),
        )


def pack(
    examples: Sequence[Example],
    prompt: PromptTokens,
    geometry: EncoderGeometry,
    augmentation: Augmentation | None = None,
    shapes: Sequence[Shape] = (),
) -> PackedBatch:
    """Lay clips end to end in the order given.

    Args:
        examples: at least one clip, each with samples and a target.
        prompt: ids around the audio.
        geometry: the encoder's attention window.
        augmentation: masks to draw for clips that carry a ``mask_seed``; None masks nothing.
        shapes: pad the batch to the first of these that holds it; nothing is padded if there are none.
    """
    assert examples, "an empty batch has no loss"
    assert all(e.samples.dtype == np.int16 and e.samples.size and e.target_ids for e in examples)
    samples = [perturbed_length(len(example.samples), example.speed) for example in examples]
    frames = [num_frames(count) for count in samples]
    audio_tokens = [num_audio_tokens(count) for count in frames]
    windows = cut_windows(audio_tokens, geometry)
    opening, clips = prompt.before_audio, _clip_ids(examples, prompt, audio_tokens)
    tokens = [len(clip) for clip in clips]
    labels_per_clip = [len(example.target_ids) for example in examples]
    needed = packed_shape(frames, audio_tokens, windows, len(opening), tokens, labels_per_clip)
    shape = fitting(needed, shapes) if shapes else needed
    segments = [len(opening), *tokens]
    first_token = _bounds(segments)[1:-1]
    last_labels = np.add(first_token, tokens)
    return PackedBatch(
        clip_ids=[example.clip_id for example in examples],
        samples=samples,
        frames=frames,
        audio_tokens=audio_tokens,
        opening_tokens=len(opening),
        tokens=tokens,
        labels_per_clip=labels_per_clip,
        waveform_S=torch.from_numpy(np.concatenate([example.samples for example in examples])),
        mel=_mel(examples, frames, augmentation, shape.chunks - needed.chunks),
        conv_positions_A=_padded(_conv_positions(frames, audio_tokens), shape.audio_tokens, 0),
        window_cu_seqlens_W1=_cu_seqlens(windows, shape.audio_tokens, shape.windows),
        input_ids_T=_padded(torch.tensor([*opening, *chain.from_iterable(clips)]), shape.tokens, prompt.end_of_turn),
        position_ids_T=_padded(_ranges([0] + [len(opening)] * len(tokens), segments), shape.tokens, 0),
        # Padded audio lands, and padded labels read, where only padding sees it: on the last token.
        audio_positions_A=_padded(_ranges(first_token, audio_tokens), shape.audio_tokens, shape.tokens - 1),
        clip_cu_seqlens_N2=_cu_seqlens(segments, shape.tokens, 1 + shape.clips),
        supervised_positions_L=_padded(
            _ranges(last_labels - labels_per_clip, labels_per_clip), shape.labels, shape.tokens - 1
        ),
        labels_L=_padded(
            torch.tensor(list(chain.from_iterable(example.target_ids for example in examples))), shape.labels, IGNORED
        ),
    )


def _clip_ids(examples: Sequence[Example], prompt: PromptTokens, audio_tokens: Sequence[int]) -> list[list[int]]:
    """What the language model reads of each clip after the opening.

    The last target token is a label but never an input: nothing follows it.
    """
    each = zip(examples, audio_tokens, strict=True)
    return [prompt.from_audio(count) + example.target_ids[:-1] for example, count in each]


def _mel(
    examples: Sequence[Example], frames: Sequence[int], augmentation: Augmentation | None, padding_chunks: int
) -> MelPlan:
    lengths, speeds = [len(example.samples) for example in examples], [example.speed for example in examples]
    return plan_mel(lengths, speeds, _masks(examples, frames, augmentation), padding_chunks=padding_chunks)


def _masks(examples: Sequence[Example], frames: Sequence[int], augmentation: Augmentation | None) -> list[Masks] | None:
    if augmentation is None or all(example.mask_seed is None for example in examples):
        return None
    return [
        no_masks(augmentation) if example.mask_seed is None else draw_masks(example.mask_seed, count, augmentation)
        for example, count in zip(examples, frames, strict=True)
    ]


def _padded(values: Tensor, size: int, value: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)), value=value)


def _cu_seqlens(lengths: Sequence[int], items: int, segments: int) -> Tensor:
    """int32 bounds of the segments, and of padding segments that take the rest of ``items``."""
    padding = fill(items - sum(lengths), segments - len(lengths)) if segments > len(lengths) else []
    return torch.from_numpy(_bounds([*lengths, *padding]).astype(np.int32))


def _bounds(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """0 and the running totals: one more than ``lengths``."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _ranges(first: Any, lengths: Sequence[int]) -> Tensor:
    """``first[i], first[i] + 1, …`` for ``lengths[i]`` values, for every i, end to end."""
    bounds = _bounds(lengths)
    return torch.from_numpy(np.repeat(np.asarray(first) - bounds[:-1], lengths) + np.arange(bounds[-1]))


def _conv_positions(frames: Sequence[int], audio_tokens: Sequence[int]) -> Tensor:
    """Only a clip's last chunk can be short, so each clip's outputs are a run from its first chunk."""
    chunks = [num_chunks(count) for count in frames]
    return _ranges(_bounds(chunks)[:-1] * TOKENS_PER_CHUNK, audio_tokens)
