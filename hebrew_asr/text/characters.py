"""Sets of characters that the Hebrew normalizers treat alike, and a translation table that covers all of Unicode.

Gershayim and geresh are typed in many ways (the proper U+05F4/U+05F3, ASCII quotes, curly quotes, primes, stand-alone
accents), so they are listed once here. Everything else is decided by Unicode general category.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

SINGLE_QUOTES = frozenset(
    "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02ca\u02cb\u0384\u05f3\u1fbd\u1fbf\u1fef\u1ffd\u1ffe"
    "\u2018\u2019\u201a\u201b\u2032\u2035\u275b\u275c\ua78c"
)
DOUBLE_QUOTES = frozenset(
    '"\u00a8\u02ba\u02dd\u02ee\u05f4\u201c\u201d\u201e\u201f\u2033\u2036\u275d\u275e\u2e42\u301d\u301e\u301f'
)
QUOTES = SINGLE_QUOTES | DOUBLE_QUOTES

MAQAF = "\u05be"
# Paseq, sof pasuq and nun hafukha lie inside the range of the points, but they stand between words.
HEBREW_SEPARATORS = frozenset("\u05c0\u05c3\u05c6")
HEBREW_LETTERS = "\u05d0-\u05ea\u05ef-\u05f2"
"""For a regular expression's character class: alef to tav and the Yiddish digraphs."""

BOUND_PREFIX_LETTERS = "ומשהכלב"
"""Conjunctions, prepositions and the article that are written joined to the next word (mnemonic: moshe ve-kalev)."""

_VARIKA = "\ufb1e"


class LazyTable(dict[int, str | None]):
    """A ``str.translate`` table over all of Unicode: a character is decided when first met, then remembered."""

    def __init__(self, decide: Callable[[str], str | None]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, codepoint: int) -> str | None:
        replacement = self._decide(chr(codepoint))
        self[codepoint] = replacement
        return replacement


def is_hebrew_point(character: str) -> bool:
    """Niqqud, te'amim and the varika, but not maqaf, paseq, sof pasuq or nun hafukha, which are punctuation."""
    return character == _VARIKA or ("\u0590" <= character <= "\u05ff" and unicodedata.category(character) == "Mn")


def is_invisible(character: str) -> bool:
    """Characters with no text of their own: bidi controls, zero widths, soft hyphen, BOM, variation selectors."""
    return (
        unicodedata.category(character) == "Cf"
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    )


def bound_prefix_splits(word: str) -> list[tuple[str, str]]:
    """All (bound prefix, rest) readings of a Hebrew word, at most three letters of prefix, the shortest first."""
    longest = 0
    while longest < min(3, len(word) - 1) and word[longest] in BOUND_PREFIX_LETTERS:
        longest += 1
    return [(word[:length], word[length:]) for length in range(longest + 1)]
