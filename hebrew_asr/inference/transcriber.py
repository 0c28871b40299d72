"""The one decode path: in-loop evaluation, ``hebrew-asr eval`` and ``hebrew-asr transcribe`` all end here.

Features are made clip by clip and the answer is cut at the clip's own length cap, so batch mates change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import StaticCache

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, to_int16
from hebrew_asr.audio.frames import (
    CHUNK_FRAMES,
    FRAMES_PER_S,
    MEL_BINS,
    TOKENS_PER_CHUNK,
    EncoderGeometry,
    num_chunks,
    num_frames,
)
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import Example, pack
from hebrew_asr.errors import EnvironmentProblem, first_line
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.inference.pieces import DEFAULT_CUTTING, Cutting
from hebrew_asr.inference.replay import replayed_decoding
from hebrew_asr.model.sizes import ModelSizes
from hebrew_asr.text.prompt import (
    LANGUAGE,
    PromptTokens,
    build_target,
    parse_target,
    target_ids,
    text_of,
    without_markers,
)

if TYPE_CHECKING:
    from hebrew_asr.inference.long_form import Transcript

_UNBOUNDED = 1 << 30
_ENCODED_CHUNKS = 256
"""Chunks, of a second each, that the encoder reads at once; its first activations take 6 MB for each in bf16."""
_SMALL_WEIGHTS = 20_000_000
"""The demo's model has 1 million, the smallest published one 600."""


@dataclass(frozen=True)
class Decoding:
    """How text is generated: greedily, with a cap by audio length against runaway repetition."""

    language: str | None = LANGUAGE
    """Forced ``language …<asr_text>`` prefix; None lets the model name the language itself."""
    max_tokens_per_s: float = 12.0
    min_new_tokens: int = 16

    def cap(self, num_samples: int) -> int:
        """Tokens that a clip of this length may get."""
        return self.min_new_tokens + int(self.max_tokens_per_s * num_samples / SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class Heard:
    """What the model wrote for a clip."""

    text: str
    """On one line: files of transcripts have a line a recording, and subtitles end a cue at an empty one."""
    language: str | None
    """The forced one, or the one that the model named; None if it named none."""
    is_cut: bool
    """Whether the text had not ended when it reached the clip's cap."""


class Transcriber:
    """Greedy batched generation with a KV cache, through transformers' own ``generate``.

    On CUDA the cache is static, and single tokens are replayed from a CUDA graph.
    """

    def __init__(self, asr: Any, tokenizer: Any, decoding: Decoding = Decoding(), cutting: Cutting = DEFAULT_CUTTING):
        """No weight is read yet.

        Args:
            asr: native Qwen3-ASR on its device, in any dtype; its training mode is left as it is.
            tokenizer: of the model.
            decoding: how text is generated.
            cutting: how long the pieces are that recordings are cut into.
        """
        self.cutting = cutting
        self._asr, self._tokenizer, self._decoding = asr, tokenizer, decoding
        self._prompt = PromptTokens.of(tokenizer)
        self._geometry = EncoderGeometry.of(asr.config.audio_config)
        forced = build_target("", decoding.language) if decoding.language else ""
        self._forced_ids = target_ids(tokenizer, forced)[:-1] if forced else []
        self._mel: LogMel | None = None
        self._most_together = _UNBOUNDED

    @classmethod
    def load(cls, model: str, *, language: str = LANGUAGE, device: str = "auto", dtype: str = "auto") -> Transcriber:
        """A model ready to transcribe with; see :func:`hebrew_asr.inference.load.load_transcriber`."""
        from hebrew_asr.inference.load import load_transcriber

        return load_transcriber(model, language, device=device, dtype=dtype)

    def in_language(self, language: str | None) -> Transcriber:
        """The same model, told another language; None lets it name the language itself."""
        if language == self._decoding.language:
            return self
        return Transcriber(self._asr, self._tokenizer, replace(self._decoding, language=language), self.cutting)

    def transcribe(
        self, sound: Any, *, rate_hz: int = SAMPLE_RATE_HZ, prompt: str = "", batch_pieces: int = 32
    ) -> Transcript:
        """The text of a recording of any length, with the times of its segments.

        Args:
            sound: path of an audio or video file, its content, an open binary file, or samples as a NumPy array or a
                tensor; see :func:`hebrew_asr.inference.inputs.blocks_of_any`.
            rate_hz: of samples; files say their own.
            prompt: context, such as names that occur: the system turn of every piece.
            batch_pieces: pieces decoded together.

        Raises:
            UsageError: ``sound`` is no such thing, the prompt has more than 10,000 characters, or no piece is decoded.
            DataError: it cannot be decoded.
        """
        from hebrew_asr.inference.inputs import blocks_of_any
        from hebrew_asr.inference.long_form import Options, transcribe_recording

        options = Options(prompt=prompt, batch_pieces=batch_pieces)
        return transcribe_recording(self, blocks_of_any(sound, rate_hz), options)

    def tokens(self, text: str) -> list[int]:
        """Ids of the tokens that a text is made of."""
        return target_ids(self._tokenizer, text)[:-1]

    def __call__(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Transcripts of clips, decoded together.

        Args:
            clips: float32 arrays of shape (samples,), mono 16 kHz, each at most 30 s.
        """
        return [heard.text for heard in self.hear(clips)]

    def hear(self, clips: Sequence[np.ndarray], contexts: Sequence[str] = ()) -> list[Heard]:
        """Transcripts of clips, decoded together, each with its language and whether the cap cut it short.

        When the device runs out of memory, half as many clips are decoded together, from then on too.

        Args:
            clips: as :meth:`__call__` takes them.
            contexts: for each clip the system turn of its prompt, such as previous text or names; all empty by default.

        Raises:
            EnvironmentProblem: the device's memory is too small for a single one.
        """
        contexts = contexts or [""] * len(clips)
        found: list[Heard] = []
        with torch.inference_mode(), _fitting_threads(self._asr):
            while len(found) < len(clips):
                some = slice(len(found), len(found) + self._most_together)
                try:
                    found += self._hear(clips[some], contexts[some])
                    continue
                except torch.OutOfMemoryError as error:
                    self._hear_fewer(clips[some], error)
                torch.cuda.empty_cache()  # here, where the error holds nothing any more
        return found

    def _hear_fewer(self, clips: Sequence[np.ndarray], error: torch.OutOfMemoryError) -> None:
        if len(clips) == 1:
            lasts_s = len(clips[0]) / SAMPLE_RATE_HZ
            raise EnvironmentProblem(
                f"the memory of {self._asr.device} does not suffice to decode {lasts_s:.1f} s of sound "
                f"({first_line(error)}); end what else uses it, or take a larger device"
            ) from error
        self._most_together = len(clips) // 2
        note_fallback(f"at most {self._most_together} clips are decoded together, for want of memory", error)

    def _hear(self, clips: Sequence[np.ndarray], contexts: Sequence[str]) -> list[Heard]:
        device = self._asr.device
        before = [self._prompt_with(context) for context in contexts]
        audio_AH, audio_tokens = self._audio_embeddings(clips)
        prompts = [prompt.prompt(count) + self._forced_ids for prompt, count in zip(before, audio_tokens, strict=True)]
        longest = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        caps = [self._decoding.cap(len(clip)) for clip in clips]
        options: dict[str, Any] = {
            "input_ids": input_ids,
            "inputs_embeds": self._embedded(input_ids, audio_AH),
            "attention_mask": mask,
            "max_new_tokens": max(caps),
            "do_sample": False,
            "eos_token_id": self._prompt.end_of_turn,
            "pad_token_id": pad,
        }
        if device.type == "cuda":
            text_config = self._asr.config.get_text_config(decoder=True)
            cache = StaticCache(config=text_config, max_cache_len=longest + max(caps))
            with replayed_decoding(self._asr):
                answer = self._asr.generate(**options, past_key_values=cache)
        else:
            answer = self._asr.generate(**options)
        rows = answer[:, longest:].tolist()
        return [self._heard(row[:cap]) for row, cap in zip(rows, caps, strict=True)]

    def most_within(self, memory_bytes: int, longest_s: float) -> int:
        """How many clips, none longer than this, can be decoded together in so much of a device's memory; 1 at least.

        Counted are, for what the encoder reads at once, both sides of its first activation; a layer of the LLM over the
        prompt, at its widest; keys and values of all tokens; and the logits of one.
        """
        sizes, width = ModelSizes.of(self._asr.config), self._asr.dtype.itemsize
        chunks = num_chunks(math.ceil(longest_s * FRAMES_PER_S))
        read = len(self._prompt.prompt(TOKENS_PER_CHUNK * chunks)) + len(self._forced_ids)
        written = self._decoding.cap(round(longest_s * SAMPLE_RATE_HZ))
        convolved = 2 * _ENCODED_CHUNKS * sizes.downsample_hidden_size * (MEL_BINS // 2) * (CHUNK_FRAMES // 2)
        layer = read * (3 * sizes.intermediate_size + 4 * sizes.hidden_size)
        kept = 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim * (read + written)
        each = layer + kept + 3 * sizes.vocab_size
        return max(1, (memory_bytes // width - convolved) // each)

    def _prompt_with(self, context: str) -> PromptTokens:
        return PromptTokens.of(self._tokenizer, without_markers(context)) if context else self._prompt

    def _audio_embeddings(self, clips: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
        """What the language model reads of all clips, end to end, (audio tokens, hidden size), and each one's tokens.

        Through the packed pass: the native encoder makes a call for each window in each layer, a fifth of the time that
        an evaluation takes. In parts, since its first activations are larger than all else.
        """
        from hebrew_asr.passes.packed import PackedASR  # seconds of imports, which a model that is loaded has behind it

        device = self._asr.device
        if self._mel is None:
            self._mel = LogMel().to(device)
        encoder, parts, audio_tokens = PackedASR(self._asr), list[torch.Tensor](), list[int]()
        for some in _parts(clips):
            samples = np.split(to_int16(np.concatenate(some)), np.cumsum([len(clip) for clip in some])[:-1])
            # The target is never fed: any one id makes a well-formed example.
            examples = [Example(str(place), own, [self._prompt.end_of_turn]) for place, own in enumerate(samples)]
            packed = pack(examples, self._prompt, self._geometry)
            audio_tokens += packed.audio_tokens
            packed = packed.to(device)
            parts.append(encoder.audio_embeddings(packed, self._mel(packed)))
        return torch.cat(parts), audio_tokens

    def _embedded(self, input_ids: torch.Tensor, audio_AH: torch.Tensor) -> torch.Tensor:
        """Prompts as the language model reads them, (clips, tokens, hidden size), with the sound in its place."""
        is_audio = (input_ids == self._prompt.audio_pad)[..., None]
        return self._asr.get_input_embeddings()(input_ids).masked_scatter(is_audio, audio_AH)

    def _heard(self, ids: list[int]) -> Heard:
        is_cut = self._prompt.end_of_turn not in ids
        if not is_cut:
            ids = ids[: ids.index(self._prompt.end_of_turn)]
        text, language = self._tokenizer.decode(ids, skip_special_tokens=True), self._decoding.language
        if not self._forced_ids:
            named, text = parse_target(text)
            language = named or None
        return Heard(text_of(text), language, is_cut)


def _parts(clips: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """As many clips as the encoder reads at once, in the order given."""
    start = chunks = 0
    for place, clip in enumerate(clips):
        more = num_chunks(num_frames(len(clip)))
        if place > start and chunks + more > _ENCODED_CHUNKS:
            yield clips[start:place]
            start, chunks = place, 0
        chunks += more
    yield clips[start:]


@contextmanager
def _fitting_threads(asr: Any) -> Iterator[None]:
    """One thread for a small model on a CPU: more of them wait for each other longer than they work."""
    before = torch.get_num_threads()
    is_small = asr.device.type == "cpu" and asr.num_parameters() < _SMALL_WEIGHTS
    torch.set_num_threads(1 if is_small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
