"""A text that says the same over and over, as a model writes that has lost its way."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

_MAX_NGRAM = 8
_LEAST_LOOP_WORDS = 6
_LEAST_TIMES = 4
_MAX_COMPRESSION = 2.4  # as Whisper's
_LEAST_COMPRESSED = 80


def is_repetitive(text: str) -> bool:
    """Whether it holds a loop of words, or compresses as no ordinary text does."""
    return find_loop(text.split()) is not None or _compression_ratio(text) > _MAX_COMPRESSION


def find_loop(words: Sequence[str]) -> tuple[int, int, int] | None:
    """The first n-gram of up to 8 words that comes at least 4 times and 6 words in a row: (first word, n, times).

    Punctuation does not tell words apart.
    """
    bare = [re.sub(r"\W", "", word) or word for word in words]
    for first in range(len(bare)):
        for size in range(1, _MAX_NGRAM + 1):
            times = 1
            while bare[first : first + size] == bare[first + times * size : first + (times + 1) * size]:
                times += 1
            if times >= _LEAST_TIMES and times * size >= _LEAST_LOOP_WORDS:
                return first, size, times
    return None


def without_loops(text: str) -> str:
    """The text with every loop reduced to one round of it."""
    words = text.split()
    while loop := find_loop(words):
        first, size, times = loop
        words = words[: first + size] + words[first + size * times :]
    return " ".join(words)


def _compression_ratio(text: str) -> float:
    """Bytes by bytes compressed, with a byte a Hebrew letter; ordinary text has some 1.8, and short text tells nothing.

    UTF-8, which Whisper's guard compresses, spends two on such a letter, and ordinary Hebrew would have above 2.
    """
    content = text.encode("iso-8859-8", errors="replace")
    return len(content) / len(zlib.compress(content)) if len(content) >= _LEAST_COMPRESSED else 1.0
