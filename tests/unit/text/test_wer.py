"""Error counts against counts made by hand and against jiwer on the whole corpus; the bootstrap interval."""

from __future__ import annotations

import json
import math

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.errors import DataError
from hebrew_asr.text.normalize import Mode, normalize
from hebrew_asr.text.wer import ErrorCounts, bootstrap_interval, count_errors, per_clip_errors
from tests.support.properties import examples

BY_HAND = [
    ("אבא בא", "אבא בא", ErrorCounts(words=2, chars=6, clips=1), "no error"),
    ("אבא בא", "אמא בא", ErrorCounts(substitutions=1, words=2, char_edits=1, chars=6, clips=1), "a substitution"),
    ("אבא בא", "אבא", ErrorCounts(deletions=1, words=2, char_edits=3, chars=6, clips=1), "a deletion, with its space"),
    ("אבא", "אבא בא", ErrorCounts(insertions=1, words=1, char_edits=3, chars=3, clips=1), "an insertion"),
    ("אבא בא", "", ErrorCounts(deletions=2, words=2, char_edits=6, chars=6, clips=1), "empty output is deletions"),
    ("", "אבא בא", ErrorCounts(insertions=2, char_edits=6, clips=1), "empty reference is insertions"),
    ("[מוזיקה]", "אבא", ErrorCounts(insertions=1, char_edits=3, clips=1), "a reference empty once normalized"),
    ("", "", ErrorCounts(clips=1), "silence heard as silence"),
    ("שָׁלוֹם, צה״ל!", 'שלום צה"ל', ErrorCounts(words=2, chars=8, clips=1), "normalized first"),
    ("הוא הלך הביתה", "הוא לא הלך בית", ErrorCounts(1, 0, 1, 3, 5, 13, 1), "one of each of two"),
]

SENTENCES = st.lists(st.text(st.sampled_from("אבג  "), max_size=12), min_size=1, max_size=6)
COUNTS = st.builds(ErrorCounts, *[st.integers(0, 1000)] * 7)


@pytest.mark.parametrize(("reference", "hypothesis", "counts", "why"), BY_HAND, ids=[row[3] for row in BY_HAND])
def test_counts_made_by_hand(reference: str, hypothesis: str, counts: ErrorCounts, why: str) -> None:
    assert count_errors([reference], [hypothesis]) == counts, why


def test_rates_are_edits_over_reference() -> None:
    counts = ErrorCounts(substitutions=1, deletions=2, insertions=3, words=12, char_edits=5, chars=40)
    assert (counts.word_edits, counts.wer, counts.cer) == (6, 0.5, 0.125)


def test_no_reference_word_gives_the_insertions_as_jiwer_does() -> None:
    made_up = count_errors(["", ""], ["אבא בא", "אבא"])
    assert made_up.wer == jiwer.process_words(["", ""], ["אבא בא", "אבא"]).wer == 3.0
    assert (made_up.cer, ErrorCounts().wer, ErrorCounts().cer) == (9.0, 0.0, 0.0)
    assert math.isfinite(json.loads(json.dumps(made_up.wer)))


@pytest.mark.parametrize(("mode", "edits"), [("strict", 2), ("lenient", 0), ("ivrit", 4), ("target", 2)])
def test_the_mode_decides(mode: Mode, edits: int) -> None:
    """The number and the spelling differ, but not for lenient; for ivrit U+05F4 splits its word as well."""
    assert count_errors(["צה״ל שלוש תוכנית"], ['צה"ל 3 תכנית'], mode).word_edits == edits


@pytest.mark.parametrize(("mode", "edits"), [("strict", 0), ("lenient", 0), ("ivrit", 2)])
def test_words_in_parentheses_are_scored_as_they_are_trained(mode: Mode, edits: int) -> None:
    """The leaderboard's normalizer drops them from the reference: two insertions."""
    assert count_errors(["הוא נולד (בשנת 1948) בחיפה"], ["הוא נולד בשנת 1948 בחיפה"], mode).word_edits == edits


@examples(300)
@given(SENTENCES, SENTENCES, st.integers(0, 6))
def test_the_sum_of_parts_is_the_whole_and_jiwers_corpus_count(first: list[str], second: list[str], cut: int) -> None:
    length = min(len(first), len(second))
    references, hypotheses = first[:length], second[:length]
    whole = count_errors(references, hypotheses)
    parts = count_errors(references[:cut], hypotheses[:cut]) + count_errors(references[cut:], hypotheses[cut:])
    assert parts == whole == sum(per_clip_errors(references, hypotheses), start=ErrorCounts())
    clean = [normalize(text, "strict") for text in references], [normalize(text, "strict") for text in hypotheses]
    corpus = jiwer.process_words(*clean)
    assert (whole.substitutions, whole.deletions, whole.insertions) == (
        corpus.substitutions,
        corpus.deletions,
        corpus.insertions,
    )
    assert whole.wer == corpus.wer
    assert whole.cer == jiwer.process_characters(*clean).cer
    assert (whole.clips, whole.words) == (length, sum(len(text.split()) for text in clean[0]))


def test_corpus_rate_is_not_the_mean_of_clip_rates() -> None:
    clips = per_clip_errors(["אבא", "אבא בא הביתה היום"], ["", "אבא בא הביתה היום"])
    assert [clip.wer for clip in clips] == [1.0, 0.0]
    assert sum(clips, start=ErrorCounts()).wer == 0.2


def test_no_clip_counts_nothing() -> None:
    assert count_errors([], []) == ErrorCounts()


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 references but 1 hypotheses"):
        count_errors(["א", "ב"], ["א"])


def clips(*edits_of_ten: int) -> list[ErrorCounts]:
    """One clip of ten words for each number of substitutions."""
    return [ErrorCounts(substitutions=edits, words=10, clips=1) for edits in edits_of_ten]


def test_interval_holds_the_rate_and_repeats() -> None:
    sample = clips(*[0, 1, 2, 3, 4] * 20)
    low, high = bootstrap_interval(sample, None)
    assert low < 0.2 < high
    assert bootstrap_interval(sample, None) == (low, high)


@pytest.mark.parametrize("at_once", [1, 250, 300_000])
def test_an_interval_is_the_same_however_many_groups_are_summed_at_once(monkeypatch, at_once: int) -> None:
    """Few or many resamples in each piece, one that is shorter than the others, and all in one."""
    sample = clips(*range(11), *range(11))
    expected = bootstrap_interval(sample, None)
    monkeypatch.setattr("hebrew_asr.text.wer._DRAWN_AT_ONCE", at_once)
    assert bootstrap_interval(sample, None) == expected


def test_interval_matches_the_normal_approximation() -> None:
    """100 clips of rate 0 or 0.4, evenly: standard error 0.2 / √100 = 0.02."""
    low, high = bootstrap_interval(clips(*[0, 4] * 50), None)
    assert low == pytest.approx(0.2 - 1.96 * 0.02, abs=0.006)
    assert high == pytest.approx(0.2 + 1.96 * 0.02, abs=0.006)


def test_clips_of_one_source_are_drawn_together() -> None:
    """Two sources, one all wrong: half of the resamples see only one of them."""
    sample = clips(*[0] * 50, *[10] * 50)
    assert bootstrap_interval(sample, ["good"] * 50 + ["bad"] * 50) == (0.0, 1.0)
    low, high = bootstrap_interval(sample, None)
    assert 0.35 < low < high < 0.65


def test_groups_weigh_by_their_words() -> None:
    long_and_short = [ErrorCounts(words=90, clips=1), ErrorCounts(substitutions=10, words=10, clips=1)]
    assert bootstrap_interval(long_and_short, ["one", "one"]) == (0.1, 0.1)


@pytest.mark.parametrize(("sample", "groups"), [([], None), (clips(1), ["a", "b"])])
def test_impossible_intervals_are_refused(sample: list[ErrorCounts], groups: list[str] | None) -> None:
    with pytest.raises(DataError, match="bootstrap interval"):
        bootstrap_interval(sample, groups)
