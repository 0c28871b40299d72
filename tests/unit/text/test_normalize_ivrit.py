"""The ``ivrit`` mode against the leaderboard's own composition of ``hebrew`` and ``whisper-normalizer``."""

from __future__ import annotations

import random
from collections.abc import Callable

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.wer import count_errors, per_clip_errors
from tests.support.properties import examples

OBSERVED = [
    ("שָׁלוֹם עוֹלָם", "שלום עולם", "points are deleted"),
    ("\ufb2aלום", "ש לום", "a precomposed letter is taken apart too late"),
    ("\ufb4fוהים \ufb21", "אלוהים א", "NFKC"),
    ('צה"ל', "צהל", "ASCII quotes are deleted"),
    ("צה״ל צה”ל", "צה ל צה ל", "other quotes split the word"),
    ("צ'יפס צ׳יפס צ´יפס", "ציפס צ יפס צ יפס", "the same for geresh"),
    ("בית־ספר", "בית ספר", "maqaf"),
    ("ב-2024", "ב 2024", "a bound prefix is split off"),
    ("של\u00adום", "של\u00adום", "the soft hyphen stays"),
    ("של\u034fום", "של ום", "the grapheme joiner splits"),
    ("1,234 3.5", "1 234 3 5", "numbers are split"),
    ("₪100", " 100", "a space at the start stays"),
    ("שלום!", "שלום ", "and at the end"),
    ("<|0.00|>שלום<|1.00|><|1.00|>עולם<|2.40|>", "שלוםעולם", "timestamps glue"),
    ("בָּרָ֣א", "בר א", "te'amim split"),
    ("הָאָֽרֶץ", "הא רץ", "meteg splits"),
    ("שלום [צחוק] עולם", "שלום עולם", "an event tag"),
    ("[א> ב (ג", " ב ג", "brackets need not match; an open one is a space"),
    ("א()ב", "א ב", "empty parentheses are punctuation"),
    ("Hello, don't", "hello dont", "lower case"),
]

RANDOM_TEXT = st.text(
    st.one_of(
        st.characters(min_codepoint=0x590, max_codepoint=0x5FF),
        st.characters(min_codepoint=0xFB1D, max_codepoint=0xFB4F),
        st.characters(min_codepoint=0x300, max_codepoint=0x36F),
        st.sampled_from("\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2066\u2069\ufeff\u00ad\u2060"),
        st.sampled_from("()[]<>|\"'`´״׳“”‘’-–—־.,:;!?%₪$½²ﬁ"),
        st.sampled_from("0123456789 \n\t\r\u00a0\u2028\x1c\x85"),
        st.sampled_from("abzABZéİßΣ😀👍🏽"),
        st.characters(),
    ),
    max_size=60,
)


@pytest.mark.parametrize(("text", "expected", "why"), OBSERVED, ids=[row[2] for row in OBSERVED])
def test_observed_output(text: str, expected: str, why: str) -> None:
    assert normalize(text, "ivrit") == expected, why


@pytest.fixture(scope="module")
def leaderboard() -> Callable[[str], str]:
    """``HebrewTextNormalizer`` of evaluate_model.py, ivrit-ai/asr-training."""
    reason = "the leaderboard's packages come with the dev extra"
    hebrew = pytest.importorskip("hebrew", reason=reason)
    basic = pytest.importorskip("whisper_normalizer.basic", reason=reason).BasicTextNormalizer()
    deleted = dict.fromkeys(map(ord, "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"))
    deleted |= dict.fromkeys(map(ord, "\u2066\u2067\u2068\u2069"))

    def normalizer(text: str) -> str:
        text = hebrew.Hebrew(text.translate(deleted)).no_niqqud().string
        return basic(text.replace('"', "").replace("'", ""))

    return normalizer


@examples(4000)
@given(text=RANDOM_TEXT)
def test_equals_the_leaderboard_on_random_text(leaderboard: Callable[[str], str], text: str) -> None:
    assert normalize(text, "ivrit") == leaderboard(text)


def test_equals_the_leaderboard_on_every_character(leaderboard: Callable[[str], str]) -> None:
    """Each character of Unicode's first three planes, between two letters."""
    differ = [
        hex(code) for code in range(0x30000) if normalize(f"א{chr(code)}ב", "ivrit") != leaderboard(f"א{chr(code)}ב")
    ]
    assert differ == []


def test_equals_the_leaderboard_on_observed_text(leaderboard: Callable[[str], str]) -> None:
    assert [leaderboard(text) for text, _, _ in OBSERVED] == [expected for _, expected, _ in OBSERVED]


def test_errors_of_2000_pairs_are_those_of_the_leaderboards_code(leaderboard: Callable[[str], str]) -> None:
    """Sentences of odd words, and what is left of each with some words dropped, put in, changed and moved."""
    draw = random.Random(0)
    words = [word for text, _, _ in OBSERVED for word in text.split()] + ["הילדה", "קוראת", "ספר", "חדש", "12", "OK"]
    references = [" ".join(draw.choices(words, k=draw.randrange(15))) for _ in range(2000)]

    def heard(word: str) -> list[str]:
        changed: list[list[str]] = [[], [word, draw.choice(words)], [draw.choice(words)]]
        return draw.choice(changed) if draw.random() < 0.3 else [word]

    hypotheses = [" ".join(new for word in text.split() for new in heard(word)) for text in references]
    found = per_clip_errors(references, hypotheses, "ivrit")
    assert 1000 < sum(errors.word_edits > 0 for errors in found) < 2000
    for reference, hypothesis, errors in zip(references, hypotheses, found, strict=True):
        theirs = jiwer.process_words(leaderboard(reference), leaderboard(hypothesis))
        told = (errors.substitutions, errors.deletions, errors.insertions)
        assert told == (theirs.substitutions, theirs.deletions, theirs.insertions), (reference, hypothesis)
    clean = [[leaderboard(text) for text in texts] for texts in (references, hypotheses)]
    whole = count_errors(references, hypotheses, "ivrit")
    assert (whole.wer, whole.cer) == (jiwer.wer(*clean), jiwer.cer(*clean))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("sign", "<[(")
def test_signs_that_open_what_nothing_closes_take_no_time(leaderboard: Callable[[str], str], sign: str) -> None:
    assert normalize(f"א{sign * 100_000}ב", "ivrit") == "א ב"
    text = f"{sign}א>{sign}ב){sign}ג]{sign * 9}ד"
    assert normalize(text, "ivrit") == leaderboard(text)
