"""Hebrew cardinal numbers: values to words, and the many wordings of a number back to its value.

Hebrew number words agree in gender with the noun (שלוש בנות, שלושה בנים), have construct forms (שלושת), older spellings
(ששה) and an "and" that speakers may leave out after hundreds and thousands (מאה ועשרים, מאה עשרים). Digits say none of
that, so all of it reads as one value, and a value has one wording: the feminine, which is also used for counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hebrew_asr.text.characters import bound_prefix_splits

_LIMIT = 10**12  # exclusive; a longer string of digits is an identifier rather than a quantity

_FEMININE = ("אפס", "אחת", "שתיים", "שלוש", "ארבע", "חמש", "שש", "שבע", "שמונה", "תשע", "עשר")
_MASCULINE = ("אפס", "אחד", "שניים", "שלושה", "ארבעה", "חמישה", "שישה", "שבעה", "שמונה", "תשעה", "עשרה")
_CONSTRUCT = ("", "", "שתי", "שלושת", "ארבעת", "חמשת", "ששת", "שבעת", "שמונת", "תשעת", "עשרת")
_TENS = ("", "", "עשרים", "שלושים", "ארבעים", "חמישים", "שישים", "שבעים", "שמונים", "תשעים")
_SCALES = {10**9: "מיליארד", 10**6: "מיליון", 1000: "אלף"}
_OTHER_UNITS = {"שתים": 2, "שני": 2, "שלש": 3, "שלשה": 3, "שלשת": 3, "חמשה": 5, "ששה": 6}
_OTHER_WORDS = {"מאתים": 200, "שלשים": 30, "חמשים": 50, "ששים": 60, "מליון": 10**6, "מליארד": 10**9}

_UNITS = {word: value for words in (_FEMININE, _MASCULINE, _CONSTRUCT) for value, word in enumerate(words) if word}
_UNITS |= _OTHER_UNITS
_SINGLE_WORDS = {
    **_UNITS,
    **{word: 10 * tens for tens, word in enumerate(_TENS) if word},
    "מאה": 100,
    "מאתיים": 200,
    "אלפיים": 2000,
    **{word: value for value, word in _SCALES.items()},
    **_OTHER_WORDS,
}
_TEENS = {
    # A feminine unit with the feminine ten, or a masculine one with the masculine; "חמש עשר" is five and ten.
    **{(_FEMININE[unit], "עשרה"): 10 + unit for unit in range(1, 10)},
    **{(_MASCULINE[unit], "עשר"): 10 + unit for unit in range(1, 10)},
    ("שתים", "עשרה"): 12,
    ("שלש", "עשרה"): 13,
    ("שלשה", "עשר"): 13,
    ("חמשה", "עשר"): 15,
    ("ששה", "עשר"): 16,
    # Every wording of ten is folded to one, so a unit that forms a teen with that one must form it with all: eight,
    # the same in both genders, and שנים, which alone is "years".
    **{(eight, ten): 18 for eight in ("שמונה", "שמונת") for ten in ("עשר", "עשרה", "עשרת")},
    **{("שנים", ten): 12 for ten in ("עשר", "עשרה", "עשרת")},
}
_HUNDREDS = {(word, "מאות"): 100 * value for word, value in _UNITS.items() if 3 <= value <= 9}
_THOUSANDS = {(word, "אלפים"): 1000 * value for word, value in _UNITS.items() if 3 <= value <= 10}
_WORD_PAIRS = _TEENS | _HUNDREDS | _THOUSANDS


class SpokenNumber(NamedTuple):
    """A whole number found in a list of words."""

    prefix: str
    """Bound prefix of its first word: ב in בשלושה."""
    value: int
    length: int
    """How many words it takes."""


def number_words(digits: str) -> list[str]:
    """Words of a string of ASCII digits: "24" → עשרים וארבע.

    Digit by digit when it is an identifier rather than a quantity: with a leading zero (054), or from 10**12 on.
    """
    if len(digits) > 1 and (digits[0] == "0" or len(digits) >= len(str(_LIMIT))):  # int() takes 4,300 at most
        return spell_digits(digits)
    return cardinal(int(digits))


def decimal_words(whole: str, fraction: str) -> list[str]:
    """Words of ``whole.fraction``, both strings of ASCII digits: "3", "5" → שלוש נקודה חמש.

    One or two decimals are read as a number (3.14: נקודה ארבע עשרה), more, or a leading zero, digit by digit.
    """
    return [*number_words(whole), "נקודה", *(number_words(fraction) if len(fraction) <= 2 else spell_digits(fraction))]


def spell_digits(digits: str) -> list[str]:
    """One feminine word for each ASCII digit."""
    return [_FEMININE[int(digit)] for digit in digits]


def cardinal(value: int) -> list[str]:
    """Feminine words of a whole number below 10**12, "and" before the last part: 324 → שלוש מאות עשרים וארבע."""
    assert 0 <= value < _LIMIT, value
    if value == 0:
        return [_FEMININE[0]]
    parts: list[list[str]] = []
    for scale, name in _SCALES.items():
        count, value = divmod(value, scale)
        if count:
            parts.append(_scaled(count, scale, name))
    return _join_with_and(parts + _parts_below_1000(value))


def _scaled(count: int, scale: int, name: str) -> list[str]:
    if count == 1:
        return [name]
    if scale == 1000 and count <= 10:
        return ["אלפיים"] if count == 2 else [_CONSTRUCT[count], "אלפים"]
    return [*_join_with_and(_parts_below_1000(count)), name]


def _parts_below_1000(value: int) -> list[list[str]]:
    hundreds, rest = divmod(value, 100)
    tens, units = divmod(rest, 10) if rest > 19 else (0, rest)
    parts: list[list[str]] = []
    if hundreds:
        parts.append({1: ["מאה"], 2: ["מאתיים"]}.get(hundreds) or [_FEMININE[hundreds], "מאות"])
    if tens:
        parts.append([_TENS[tens]])
    if units:
        parts.append([_FEMININE[units]] if units <= 10 else _teen(units - 10))
    return parts


def _teen(unit: int) -> list[str]:
    return ["שתים" if unit == 2 else _FEMININE[unit], "עשרה"]


def _join_with_and(parts: list[list[str]]) -> list[str]:
    words = [word for part in parts[:-1] for word in part]
    first, *rest = parts[-1]
    return [*words, "ו" + first if words else first, *rest]


class _Reading(NamedTuple):
    """A number read so far: finished thousands and millions, and the group below 1000 that may still grow."""

    total: int = 0
    group: int = 0
    room: int = 1000
    """The next part of the group is below this."""
    limit: int = _LIMIT
    """The next scale is below this."""


def number_at(words: Sequence[str], start: int) -> SpokenNumber | None:
    """The longest number that begins at ``words[start]``, whatever its gender and spelling; None where there is none.

    Two numbers in a row stay two: after tens an "and" is needed (עשרים וארבע, but עשרים ארבע is 20 and 4).
    """
    first = part = _part_at(words, start)
    reading, length = _Reading(), 0
    while part and (part is first or part.prefix in ("", "ו")):
        extended = _extend(reading, part.value, has_and=part is not first and part.prefix == "ו")
        if extended is None:
            break
        reading, length = extended, length + part.length
        part = _part_at(words, start + length)
    return SpokenNumber(first.prefix, reading.total + reading.group, length) if first else None


def _part_at(words: Sequence[str], position: int) -> SpokenNumber | None:
    """The one number word, or fixed pair of words, at ``position``."""
    if position >= len(words):
        return None
    following, after_that = (*words[position + 1 : position + 3], "", "")[:2]
    for prefix, bare in bound_prefix_splits(words[position]):
        if (bare, following) in _WORD_PAIRS and (following, after_that) not in _THOUSANDS:
            return SpokenNumber(prefix, _WORD_PAIRS[bare, following], 2)
        # השני is the ordinal "the second".
        if bare in _SINGLE_WORDS and not (bare == "שני" and prefix.endswith("ה")):
            return SpokenNumber(prefix, _SINGLE_WORDS[bare], 1)
    return None


def _extend(reading: _Reading, value: int, has_and: bool) -> _Reading | None:
    """The number with one more part, or None if the part begins another number."""
    total, group, room, limit = reading
    if value == 0:
        return _Reading(0, 0, 0, 0) if reading == _Reading() else None
    if value >= 1000:
        if value >= limit:
            return None
        if group == 0:
            return _Reading(total + value, 0, 1000, value if value in _SCALES else 1000)
        # 11 thousand and more, two million and more; "three thousand" has a word pair of its own.
        multiplies = value in _SCALES and not has_and and group > (10 if value == 1000 else 1)
        return _Reading(total + group * value, 0, 1000, value) if multiplies else None
    if value >= room or (room == 10 and not has_and):
        return None
    room = 100 if value >= 100 else 10 if value >= 20 else 1
    return _Reading(total, group + value, room, limit)
