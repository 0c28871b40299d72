"""Which tokens occur in training: found from the distinct words of its texts, which are far fewer than the texts."""

from __future__ import annotations

from typing import Any

import pyarrow

from hebrew_asr.data.clips import Clips, compute
from hebrew_asr.text.prompt import vocabulary

_TEXTS_AT_ONCE = 50_000
_WORDS_PER_LINE = 10
_LEAST_MERGED = 500_000
"""Words: merging the few of each part would go through all of the words each time."""
_OTHER_SPACE = (
    r"  |^ | $|[\t-\r\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
)
"""White space that is no single space between two words."""


def training_vocabulary(tokenizer: Any, clips: Clips) -> set[int]:
    """Ids of all that training on ``clips`` reads and writes, as :func:`hebrew_asr.text.prompt.vocabulary` of their
    texts.

    A tokenizer of Qwen's takes a space together with what follows it, never with what is before (no alternative of
    the regular expression in its tokenizer.json can). So a line of distinct words has the tokens of all texts made of
    them. A text's first word has no space before it, and is taken by itself; a text with other white space is taken
    whole.
    """
    words, whole, unmerged = pyarrow.array([], pyarrow.large_string()), set[str](), []
    for part in clips.parts(_TEXTS_AT_ONCE):
        texts = part.column("text")
        is_other = compute.match_substring_regex(texts, _OTHER_SPACE)
        whole.update(texts.filter(is_other).to_pylist())
        split = compute.split_pattern(texts.filter(compute.invert(is_other)), " ")
        whole.update(compute.list_element(split, 0).unique().to_pylist())
        unmerged.append(compute.list_flatten(compute.list_slice(split, 1)).unique())
        if sum(map(len, unmerged)) > max(len(words), _LEAST_MERGED):
            words, unmerged = pyarrow.concat_arrays([words, *unmerged]).unique(), []
    words = pyarrow.concat_arrays([words, *unmerged]).unique()
    lines = (
        " " + " ".join(words.slice(first, _WORDS_PER_LINE).to_pylist())
        for first in range(0, len(words), _WORDS_PER_LINE)
    )
    return vocabulary(tokenizer, whole) | vocabulary(tokenizer, lines)
