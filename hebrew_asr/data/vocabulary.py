"""Which tokens occur in training: found from the distinct words of its texts, which are far fewer than the texts.

A tokenizer of Qwen's takes a space together with what follows it, never with what is before (no alternative of the
regular expression in its tokenizer.json can). So a text has the tokens of its words, each with the space before it. A
text with white space other than single spaces between words counts as one word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow

from hebrew_asr.data.clips import Clips, array_of, compute, values_of
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
        own = array_of(np.arange(rank, len(clips), ranks), pyarrow.int64())
        words = new_words(clips.column("text").take(own)).values
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
        some_row[values_of(coded.indices)] = rows
        is_new = ~values_of(compute.is_in(coded.dictionary, value_set=known))
        new = np.flatnonzero(is_new)[np.argsort(some_row[is_new], kind="stable")]
        known = pyarrow.concat_arrays([known, coded.dictionary.take(array_of(new, pyarrow.int64()))])
        found_in.append(start + some_row[new])
    bounds = np.searchsorted(np.concatenate(found_in), np.arange(len(texts) + 1)).astype(np.int32)
    return pyarrow.ListArray.from_arrays(array_of(bounds, pyarrow.int32()), known)


def _words_of(texts: pyarrow.Array) -> tuple[pyarrow.Array, np.ndarray]:
    """All words of texts, each with the space before it, and the row of each."""
    is_one_word = values_of(compute.match_substring_regex(texts, _IS_ONE_WORD))
    plain, one_word = np.flatnonzero(~is_one_word), np.flatnonzero(is_one_word)
    taken, whole = (texts.take(array_of(rows, pyarrow.int64())) for rows in (plain, one_word))
    split = compute.split_pattern(compute.replace_substring(taken, " ", "\n "), "\n")
    words = pyarrow.concat_arrays([compute.list_flatten(split), whole])
    return words, np.concatenate([plain[values_of(compute.list_parent_indices(split))], one_word])


_NO_WORDS = pyarrow.nulls(0, pyarrow.large_string())
