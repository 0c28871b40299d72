"""Which tokens occur in training: found from the distinct words of its texts, which are far fewer than the texts.

A tokenizer of Qwen's takes a space together with what follows it, never with what is before (no alternative of the
regular expression in its tokenizer.json can). So a text has the tokens of its words, each with the space before it. A
text with white space other than single spaces between words counts as one word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow

from hebrew_asr.data.clips import Clips, compute
from hebrew_asr.text.prompt import vocabulary

_TEXTS_AT_ONCE = 50_000
_WORDS_PER_LINE = 10
_BUT_SPACE = r"\t-\r\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_IS_ONE_WORD = rf"  |^ | $|[{_BUT_SPACE}]"
_FOLLOWS_SPACE = rf"^ [^ {_BUT_SPACE}]+$"


def training_vocabulary(tokenizer: Any, clips: Clips, rank: int = 0, ranks: int = 1) -> set[int]:
    """Ids of all that training on a share of ``clips`` reads and writes.

    All shares together give :func:`hebrew_asr.text.prompt.vocabulary` of the texts of all ``clips``.
    """
    words = clips.words
    if words is None:
        words = new_words(clips.column("text").take(np.arange(rank, len(clips), ranks))).values
    else:
        first = rank * len(words) // ranks
        words = words.slice(first, (rank + 1) * len(words) // ranks - first)
    follows_space = compute.match_substring_regex(words, _FOLLOWS_SPACE)
    following = words.filter(follows_space)
    lines = (
        "".join(following.slice(first, _WORDS_PER_LINE).to_pylist())
        for first in range(0, len(following), _WORDS_PER_LINE)
    )
    alone = words.filter(compute.invert(follows_space)).to_pylist()
    return vocabulary(tokenizer, alone) | vocabulary(tokenizer, lines)


def new_words(texts: pyarrow.Array) -> pyarrow.ListArray:
    """For each text some of its words: each word of all texts is among those of one text."""
    known, found_in = _NO_WORDS, [np.empty(0, np.int64)]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        words, rows = _words_of(texts.slice(start, _TEXTS_AT_ONCE))
        coded = words.dictionary_encode()
        some_row = np.zeros(len(coded.dictionary), np.int64)
        some_row[coded.indices.to_numpy()] = rows
        is_new = ~compute.is_in(coded.dictionary, value_set=known).to_numpy(zero_copy_only=False)
        new = np.flatnonzero(is_new)[np.argsort(some_row[is_new], kind="stable")]
        known = pyarrow.concat_arrays([known, coded.dictionary.take(pyarrow.array(new))])
        found_in.append(start + some_row[new])
    bounds = np.searchsorted(np.concatenate(found_in), np.arange(len(texts) + 1)).astype(np.int32)
    return pyarrow.ListArray.from_arrays(bounds, known)


def _words_of(texts: pyarrow.Array) -> tuple[pyarrow.Array, np.ndarray]:
    """All words of texts, each with the space before it, and the row of each."""
    is_one_word = compute.match_substring_regex(texts, _IS_ONE_WORD).to_numpy(zero_copy_only=False)
    plain, one_word = np.flatnonzero(~is_one_word), np.flatnonzero(is_one_word)
    split = compute.split_pattern(compute.replace_substring(texts.take(plain), " ", "\n "), "\n")
    words = pyarrow.concat_arrays([compute.list_flatten(split), texts.take(one_word)])
    return words, np.concatenate([plain[compute.list_parent_indices(split).to_numpy()], one_word])


_NO_WORDS = pyarrow.nulls(0, pyarrow.large_string())  # not pyarrow.array: it imports pandas, for half a second
