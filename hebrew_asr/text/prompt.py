"""The one prompt builder: training, evaluation and the command line all read and write this form.

The chat form of Qwen3-ASR (chat_template.json of the public checkpoint)::

    <|im_start|>system\\n{context}<|im_end|>\\n<|im_start|>user\\n<|audio_start|><|audio_pad|>×N<|audio_end|><|im_end|>\\n
    <|im_start|>assistant\\nlanguage Hebrew<asr_text>{transcript}<|im_end|>

Everything after ``assistant\\n`` is the target; only the target is supervised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hebrew_asr.errors import UsageError

LANGUAGE = "Hebrew"
ASR_TEXT = "<asr_text>"
AUDIO_PAD = "<|audio_pad|>"
END_OF_TURN = "<|im_end|>"
_PREFIX = re.compile(rf"(?:language(?: +[A-Za-z]+)?\s*)?{ASR_TEXT}")
_TARGETS_AT_ONCE = 10_000
_MOST_CONTEXT = 10_000
_MARKER = re.compile(
    r"<\|[^<>|]*\|>|</?(?:tool_call|tool_response|think)>"
    r"|<(?:asr_text|non_speech|blank\d+|tts_pad|tts_text_bos|tts_text_eod|tts_text_bos_single)>"
)
"""The added tokens of Qwen3-ASR's tokenizer_config.json; a tokenizer finds them anywhere in a text."""


CHAT_TEMPLATE = """\
{%- set ns = namespace(system='', audio='') -%}
{%- for message in messages if message.role != 'assistant' -%}
  {%- if message.content is string -%}
    {%- if message.role == 'system' -%}{%- set ns.system = ns.system + message.content -%}{%- endif -%}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if message.role == 'system' and part.type == 'text' -%}{%- set ns.system = ns.system + part.text -%}
      {%- elif part.type == 'audio' -%}{%- set ns.audio = ns.audio + '<|audio_start|><|audio_pad|><|audio_end|>' -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n<|im_start|>user\\n' + ns.audio + '<|im_end|>\\n' -}}
{%- for message in messages if message.role == 'assistant' -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- generation -%}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
  {%- endgeneration -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""For tools that build a prompt from messages. It renders what :class:`PromptTokens` does:
always a system turn, the user's audio (any text is dropped), the answer."""


def build_target(transcript: str, language: str = LANGUAGE) -> str:
    """``language Hebrew<asr_text>{transcript}``, without the closing ``<|im_end|>``."""
    return f"language {language}{ASR_TEXT}{transcript}"


def parse_target(target: str) -> tuple[str, str]:
    """Split a target into (language, transcript). Text with no marker is all transcript, of language ''."""
    head, marker, transcript = target.partition(ASR_TEXT)
    if not marker:
        return "", target
    return head.removeprefix("language ").strip(), transcript


def find_marker(target: str) -> str | None:
    """The first control token in a target beside its one ``<asr_text>``: a tokenizer would not read it as text."""
    if target.count("<") < 2 and target.count(ASR_TEXT):
        return None
    found = _MARKER.search(target.replace(ASR_TEXT, "", 1))
    return found[0] if found else None


def without_markers(context: str) -> str:
    """A person's text with control tokens taken out, which a tokenizer would not read as text."""
    while _MARKER.search(context):
        context = _MARKER.sub("", context)
    return context


def text_of(written: str) -> str:
    """What a model wrote as a transcript, on one line, without what is no text.

    A badly trained one writes ``language …<asr_text>`` amid its text, or other control tokens that its tokenizer does
    not call special.
    """
    return " ".join(without_markers(_PREFIX.sub(" ", written)).split())


def checked_context(context: str) -> str:
    """``context`` itself.

    Raises:
        UsageError: it is so long that reading it would take longer than the sound.
    """
    if len(context) > _MOST_CONTEXT:
        raise UsageError(f"the prompt has {len(context):,} characters, and {_MOST_CONTEXT:,} at most are taken")
    return context


@dataclass(frozen=True)
class PromptTokens:
    """Token ids around the audio, made once per tokenizer."""

    before_audio: list[int]
    after_audio: list[int]
    audio_pad: int
    end_of_turn: int

    @classmethod
    def of(cls, tokenizer: Any, context: str = "") -> PromptTokens:
        """Tokenize the fixed parts; ``context`` is the system turn (previous text, hot words)."""
        return cls(
            before_audio=_ids(tokenizer, f"<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>"),
            after_audio=_ids(tokenizer, "<|audio_end|><|im_end|>\n<|im_start|>assistant\n"),
            audio_pad=tokenizer.convert_tokens_to_ids(AUDIO_PAD),
            end_of_turn=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        )

    def prompt(self, num_audio_tokens: int) -> list[int]:
        """Ids of the unsupervised part: everything up to and including ``assistant\\n``."""
        return [*self.before_audio, *self.from_audio(num_audio_tokens)]

    def from_audio(self, num_audio_tokens: int) -> list[int]:
        """Ids of the same, from the sound on: what comes before is the same for every clip."""
        return [*[self.audio_pad] * num_audio_tokens, *self.after_audio]


def target_ids(tokenizer: Any, target: str) -> list[int]:
    """Ids of the supervised part: the target and the end of the turn, by which the model learns to stop."""
    return [*_ids(tokenizer, target), tokenizer.convert_tokens_to_ids(END_OF_TURN)]


def target_lengths(tokenizer: Any, targets: list[str]) -> list[int]:
    """How many ids :func:`target_ids` gives for each of ``targets``."""
    return [len(encoding) + 1 for encoding in _encodings(tokenizer, targets)]


def vocabulary(tokenizer: Any, targets: Iterable[str]) -> set[int]:
    """Ids of all that training reads and writes: of the prompt, of every target, and of the end of the turn."""
    found = {*PromptTokens.of(tokenizer).prompt(1), *target_ids(tokenizer, "")}
    for encoding in _encodings(tokenizer, list(dict.fromkeys(targets))):
        found.update(encoding.ids)
    return found


def _encodings(tokenizer: Any, targets: list[str]) -> Iterator[Any]:
    """Of each target: no offsets and no masks, which take half as long again."""
    for first in range(0, len(targets), _TARGETS_AT_ONCE):  # all at once would be a gigabyte of lists
        batch = targets[first : first + _TARGETS_AT_ONCE]
        yield from tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
