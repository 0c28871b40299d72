"""What ``lenient`` folds, and what it must not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.text.lenient import ABBREVIATIONS, SPELLING_VARIANTS
from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.numbers import cardinal, number_at
from tests.support.properties import examples

CARDINALS = [
    (0, "אפס"),
    (3, "שלוש"),
    (10, "עשר"),
    (11, "אחת עשרה"),
    (12, "שתים עשרה"),
    (18, "שמונה עשרה"),
    (20, "עשרים"),
    (24, "עשרים וארבע"),
    (100, "מאה"),
    (105, "מאה וחמש"),
    (120, "מאה ועשרים"),
    (200, "מאתיים"),
    (324, "שלוש מאות עשרים וארבע"),
    (1000, "אלף"),
    (2024, "אלפיים עשרים וארבע"),
    (3000, "שלושת אלפים"),
    (10_015, "עשרת אלפים וחמש עשרה"),
    (11_000, "אחת עשרה אלף"),
    (100_000, "מאה אלף"),
    (1_000_000, "מיליון"),
    (2_345_678, "שתיים מיליון שלוש מאות ארבעים וחמש אלף שש מאות שבעים ושמונה"),
    (999_999_999, "תשע מאות תשעים ותשע מיליון תשע מאות תשעים ותשע אלף תשע מאות תשעים ותשע"),
    (10**9, "מיליארד"),
]

SAME = [
    ("3 ילדים", "שלושה ילדים", "masculine"),
    ("3 בנות", "שלוש בנות", "feminine"),
    ("3 הילדים", "שלושת הילדים", "construct"),
    ("2 שניים שתי שני", "שתיים שתיים שתיים שתיים", "all forms of two"),
    ("אחד", "אחת", "one"),
    ("6 15", "ששה חמשה עשר", "defective spelling"),
    ("12", "שנים עשר", "twelve, where שנים is not years"),
    ("15", "חמישה עשר", "masculine teen"),
    ("120", "מאה עשרים", "the optional and"),
    ("1,234", "אלף ומאתיים ושלושים וארבע", "more of them than usual"),
    ("20 אלף", "עשרים אלף", "digits and a scale"),
    ("1,500,000", "מיליון וחמש מאות אלף", "thousands after a million"),
    ("ב-24", "בעשרים וארבעה", "bound prefix"),
    ("וב־2024", "ובאלפיים עשרים וארבע", "bound prefixes"),
    ("ה-3.5", "השלוש נקודה חמש", "decimal"),
    ("3.14", "שלוש נקודה ארבע עשרה", "two decimals are read as a number"),
    ("3.05 2.125", "שלוש נקודה אפס חמש שתיים נקודה אחת שתיים חמש", "other decimals by digit"),
    ("054", "אפס חמש ארבע", "a leading zero makes an identifier"),
    ("9" * 13, " ".join(["תשע"] * 13), "too long for a quantity"),
    ("٢٠", "עשרים", "digits of another script"),
    ("50%", "חמישים אחוז", "percent"),
    ("ב-50%", "בחמישים אחוזים", "the sign does not tell singular from plural"),
    ("₪100 100₪ 100 ש״ח", "מאה שקל מאה שקלים מאה שקל", "shekel"),
    ("$5 ו-€7.5", "חמישה דולר ושבע נקודה חמש אירו", "other currencies"),
    ("5%-10%", "חמישה אחוז עשרה אחוז", "a range of signs"),
    ('ד"ר כהן', "דוקטור כהן", "abbreviation"),
    ('לד״ר כהן וד"ר לוי', "לדוקטור כהן ודוקטור לוי", "abbreviation with prefixes"),
    ("צה''ל וארה''ב", "צהל וארצות הברית", "only what is read in full"),
    ("פרופ' לוי, גב׳ כהן וכו'.", "פרופסור לוי גברת כהן וכולי", "geresh at the end"),
    ('אמר "ד"ר לוי"', "אמר דוקטור לוי", "inside quotation marks"),
    ("לענין", "לעניין", "prefix and plene"),
    ("והכל שבהכל", "והכול שבהכול", "the article is part of the entry"),
    ("אמא", "אימא", "plene"),
    ("תכנית התכנית", "תוכנית התוכנית", "plene"),
    ("בודאי הויכוח", "בוודאי הוויכוח", "vav doubled inside a word"),
    ("5 תכניות", "חמש תוכניות", "spelling after a number"),
    ("ײדיש אױב װאס", "יידיש אויב וואס", "Yiddish digraphs"),
]

DIFFERENT = [
    ("השני", "השתיים", "an ordinal is no number"),
    ("כמה שנים", "כמה שתיים", "years"),
    ("20 4", "24", "two numbers"),
    ("עשרים ארבע", "עשרים וארבע", "after tens the and is needed"),
    ("3 1000", "3000", "two numbers"),
    ("חמש עשר", "חמש עשרה", "five, ten is not fifteen"),
    ("אלפים ומאות", "אלפים מאות", "thousands and hundreds are no number"),
    ("שתיים ושלוש", "שתיים שלוש", "an and between numbers is spoken"),
    ("ודאי", "וודאי", "at the head of a word the second vav may be an and"),
    ("כל", "כול", "only with the article"),
    ("דר ברחוב", "דוקטור ברחוב", "no gershayim, no abbreviation"),
    ('סה"כב', "סך הכולב", "letters of an abbreviation inside a word"),
    ("אחוזים", "אחוז", "a unit's plural is folded after a number only"),
    ("מלך", "מלכ", "final letters"),
    ("הולך", "הולכת", "gender of other words"),
]

NUMBER_WORDS = re.findall(
    r"\w+",
    "אפס אחד אחת שני שתים שנים שניים שלש שלושה שלושת חמש חמשה שמונה שמונת עשר עשרה עשרת עשרים שלשים מאה מאתים מאות "
    "אלף אלפיים אלפים מליון מיליארד נקודה אחוזים שלום",
)


@pytest.mark.parametrize(("value", "words"), CARDINALS)
def test_cardinal(value: int, words: str) -> None:
    assert " ".join(cardinal(value)) == words


@examples(1000)
@given(st.integers(0, 10**12 - 1) | st.integers(0, 3000))
def test_every_cardinal_reads_back_whole(value: int) -> None:
    """No two numbers share a wording: words → value is the inverse of value → words."""
    words = cardinal(value)
    assert number_at(words, 0) == ("", value, len(words))
    assert normalize(f"{value:,}", "lenient") == normalize(str(value), "lenient") == " ".join(words)


@pytest.mark.timeout(20)
def test_digits_that_a_model_never_stopped_writing_are_read_one_by_one() -> None:
    assert normalize("1" * 20_000, "lenient").split() == ["אחת"] * 20_000


@examples(2000)
@given(
    st.lists(
        st.builds("{}{}".format, st.sampled_from(["", "ו", "ב", "ה"]), st.sampled_from(NUMBER_WORDS))
        | st.integers(0, 10**7).map(str)
        | st.integers(0, 30).map(str),
        max_size=6,
    )
)
def test_any_run_of_number_words_is_stable(words: list[str]) -> None:
    once = normalize(" ".join(words), "lenient")
    assert normalize(once, "lenient") == once


@pytest.mark.parametrize(("one", "other", "why"), SAME, ids=[row[2] for row in SAME])
def test_folded(one: str, other: str, why: str) -> None:
    assert normalize(one, "lenient") == normalize(other, "lenient"), why


@pytest.mark.parametrize(("one", "other", "why"), DIFFERENT, ids=[row[2] for row in DIFFERENT])
def test_not_folded(one: str, other: str, why: str) -> None:
    assert normalize(one, "lenient") != normalize(other, "lenient"), why


@pytest.mark.parametrize("prefix", ["", "ו", "ב", "ש", "כש", "ושב"])
def test_the_tables_hold_behind_every_prefix_and_settle_at_once(prefix: str) -> None:
    for written, spoken in {**ABBREVIATIONS, **SPELLING_VARIANTS}.items():
        assert normalize(prefix + written, "lenient") == prefix + spoken
        assert normalize(prefix + spoken, "lenient") == prefix + spoken
