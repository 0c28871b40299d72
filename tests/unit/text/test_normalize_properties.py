"""Laws of the normalizers on random text: Hebrew with everything that is typed into it, and all of Unicode."""

from __future__ import annotations

import re
import unicodedata
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.text.normalize import Mode, normalize
from tests.support.properties import examples

LETTERS = st.characters(min_codepoint=0x5D0, max_codepoint=0x5EA)
HEBREW_TEXT = st.text(
    st.one_of(
        st.characters(min_codepoint=0x590, max_codepoint=0x5FF),
        st.characters(min_codepoint=0xFB1D, max_codepoint=0xFB4F),
        st.sampled_from("אבהולמש 0123456789"),
        st.sampled_from("\"'`´״׳’”-–־.,:;!?%₪$()[]<>|²½é"),
        st.sampled_from("\u0301\u034f\u00ad\u200b\u200d\u200e\u200f\u2067\u2069\ufeff\u00a0\t\n"),
    )
)
HEBREW_WORD = st.text(LETTERS, min_size=1, max_size=6)
WORD = st.one_of(HEBREW_WORD, st.text(st.sampled_from("abcxyz"), min_size=1, max_size=4))
SEPARATOR = st.text(st.sampled_from("־-\u2010–— \u00a0\t"), min_size=1, max_size=3)
MANY = examples(1000)


@MANY
@given(HEBREW_TEXT | st.text())
def test_idempotent(text: str) -> None:
    for mode in ("target", "strict"):
        once = normalize(text, mode)
        assert normalize(once, mode) == once, mode


@MANY
@given(HEBREW_TEXT)
def test_lenient_is_idempotent(text: str) -> None:
    once = normalize(text, "lenient")
    assert normalize(once, "lenient") == once


@MANY
@given(HEBREW_TEXT | st.text())
def test_strict_has_only_letters_numbers_and_decimal_points(text: str) -> None:
    result = normalize(text, "strict")
    assert result == " ".join(result.split())
    without_points = re.sub(r"(?<=\d)\.(?=\d)", "", result).replace(" ", "")
    assert {unicodedata.category(character)[0] for character in without_points} <= {"L", "N"}


@MANY
@given(HEBREW_TEXT)
def test_a_target_keeps_what_strict_scores(text: str) -> None:
    assert normalize(normalize(text, "target"), "strict") == normalize(text, "strict")


@MANY
@given(HEBREW_TEXT)
def test_parentheses_are_signs_and_hide_no_word(text: str) -> None:
    without = text.replace("(", " ").replace(")", " ")
    assert normalize(text, "strict") == normalize(without, "strict")


@MANY
@given(HEBREW_TEXT)
def test_a_target_has_no_point_invisible_character_or_tag(text: str) -> None:
    result = normalize(text, "target")
    assert result == " ".join(result.split())
    assert not re.search("[\u0591-\u05c7\u05f3\u05f4\u034f]|<[^<>]*>|\\[[^][]*]", result)
    assert not any(unicodedata.category(character) in ("Cc", "Cf") for character in result)
    assert not [
        character for character in result if "HEBREW" in unicodedata.name(character, "") and character > "\ufb00"
    ]


@MANY
@given(WORD, st.lists(st.tuples(SEPARATOR, WORD), max_size=4))
def test_words_apart_stay_apart(first: str, others: list[tuple[str, str]]) -> None:
    """Maqaf, hyphens, dashes and spaces are boundaries, in any number, between any two words."""
    words = [first, *(word for _, word in others)]
    joined = first + "".join(separator + word for separator, word in others)
    for mode in get_args(Mode):
        spaced = normalize(" ".join(words), mode)
        assert re.sub("[-\u2010–—]", " ", normalize(joined, mode)).split() == spaced.split(), mode
        assert mode == "lenient" or spaced.split() == words, mode


@MANY
@given(HEBREW_WORD, st.integers(0, 9999), st.sampled_from("־-–"))
def test_only_a_bound_prefix_joins_a_number(word: str, number: int, dash: str) -> None:
    is_prefix = len(word) <= 3 and set(word) <= set("ומשהכלב")
    expected = f"{word}{number}" if is_prefix else f"{word} {number}"
    assert normalize(f"{word}{dash}{number}", "strict") == expected
    assert normalize(f"{word} {number}", "strict") == f"{word} {number}"
