"""Timestamps and the clips cut at them: nothing is supervised unheard, and nothing is heard unsupervised."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.corpus.preparation.recut import LONGEST_PAUSE_S, recut
from hebrew_asr.text.timestamps import Segment, TimedText, parse_timestamps
from tests.support.corpora import timed


def segments_of(text: str) -> list[tuple[float, float, str]]:
    return [(segment.start_s, segment.end_s, segment.text) for segment in parse_timestamps(text).segments]


def test_closed_segments():
    text = "<|0.00|> שלום<|2.40|><|2.40|> עולם<|5.00|>"
    assert segments_of(text) == [(0.0, 2.4, "שלום"), (2.4, 5.0, "עולם")]
    assert parse_timestamps(text).unheard_from_s is None


def test_dangling_start_says_where_the_text_ends():
    got = parse_timestamps("<|0.00|> שלום<|27.10|><|28.30|>")
    assert [segment.end_s for segment in got.segments] == [27.1]
    assert got.unheard_from_s == 28.3


def test_text_without_an_end_is_not_covered():
    got = parse_timestamps("<|0.00|> שלום<|2.00|><|2.50|> ועוד")
    assert [segment.text for segment in got.segments] == ["שלום"]
    assert got.unheard_from_s == 2.5


def test_one_token_between_two_texts_and_empty_segments():
    assert segments_of("<|0|>א<|1|>ב<|2|>") == [(0, 1, "א"), (1, 2, "ב")]
    assert segments_of("<|0.00|><|1.00|>א<|2.00|>") == [(1, 2, "א")]


def test_rounded_overlap_is_closed():
    assert segments_of("<|0.00|>א<|1.04|><|1.02|>ב<|2.00|>") == [(0, 1.04, "א"), (1.04, 2, "ב")]


@pytest.mark.parametrize(
    "text", ["לפני<|0.00|>א<|1.00|>", "<|2.00|>א<|1.00|>", "<|0.00|>א<|3.00|><|1.00|>ב<|4.00|>", "<|1.00|>א<|1.00|>"]
)
def test_malformed(text):
    with pytest.raises(ValueError, match=r"\d s|first timestamp"):
        parse_timestamps(text)


def cuts_of(text: str, duration_s: float, min_s: float = 1.0, max_s: float = 15.0):
    return recut(parse_timestamps(text), duration_s, min_s=min_s, max_s=max_s)


def test_thirty_seconds_become_two_clips_without_overlap():
    text = timed(*((i * 3.0, i * 3.0 + 2.6, f"משפט {i}") for i in range(10)))
    cuts, unused = cuts_of(text, 30.0)
    assert not unused
    assert [cut.text.count("משפט") for cut in cuts] == [5, 5]
    assert cuts[0].end_s <= cuts[1].start_s
    assert cuts[0].end_s == pytest.approx(14.6 + 0.2)


def test_audio_after_a_dangling_start_is_cut_away():
    cuts, unused = cuts_of(timed((0, 3, "שלום"), dangling_s=3.1), 9.0)
    assert [(cut.start_s, cut.end_s) for cut in cuts] == [(0, 3.1)]
    assert not unused


def test_short_tail_is_joined_rather_than_dropped():
    cuts, unused = cuts_of(timed((0, 14.8, "ארוך"), (14.9, 15.5, "קצר"), (15.6, 17, "עוד")), 17.0)
    assert not unused
    assert [cut.text for cut in cuts] == ["ארוך", "קצר עוד"]


def test_segments_that_fit_nowhere_are_listed():
    cuts, unused = cuts_of(timed((0, 16, "ארוך"), (20, 20.3, "קצר"), (24, 28, "טוב")), 26.0)
    assert not cuts
    assert [(left.segment.text, left.reason) for left in unused] == [
        ("טוב", "timestamps past the end of the audio"),
        ("ארוך", "segment too long"),
        ("קצר", "segment too short"),
    ]


def test_end_slightly_after_the_audio_is_clamped():
    cuts, _ = cuts_of(timed((0, 3.05, "שלום")), 3.0)
    assert cuts[0].end_s == 3.0


def test_long_pauses_are_not_crossed():
    cuts, _ = cuts_of(timed((0, 2, "לפני"), (3.5, 6, "אחרי")), 6.0)
    assert [cut.text for cut in cuts] == ["לפני", "אחרי"]


@st.composite
def recordings(draw):
    """Segments in order with gaps, an audio length, perhaps a dangling start; times in steps of 0.02 s."""
    now, segments = 0, []
    for number in range(draw(st.integers(0, 12))):
        start = now + draw(st.integers(0, 150))
        now = start + draw(st.integers(5, 900))
        segments.append(Segment(start / 50, now / 50, f"<{number}>"))
    dangling = draw(st.none() | st.integers(0, 100))
    unheard = None if dangling is None else (now + dangling) / 50
    duration_s = draw(st.integers(0, now + 300)) / 50
    return TimedText(tuple(segments), unheard), duration_s


@given(recordings(), st.sampled_from([(1.0, 15.0), (0.5, 30.0), (2.0, 5.0)]))
def test_recut_properties(recording, bounds):
    timed_text, duration_s = recording
    min_s, max_s = bounds
    cuts, unused = recut(timed_text, duration_s, min_s=min_s, max_s=max_s)
    by_text = {segment.text: segment for segment in timed_text.segments}
    used = [text for cut in cuts for text in cut.text.split()]
    assert sorted([*used, *(left.segment.text for left in unused)]) == sorted(by_text)
    heard_until_s = min(duration_s, timed_text.unheard_from_s or duration_s)
    last_end_s = 0.0
    for cut in cuts:
        assert min_s - 1e-9 <= cut.end_s - cut.start_s <= max_s + 1e-9
        assert last_end_s - 1e-9 <= cut.start_s and cut.end_s <= heard_until_s + 1e-9
        last_end_s = cut.end_s
        inside = cut.text.split()
        for text, segment in by_text.items():
            if text in inside:  # all of it is heard, but for the tolerated tail
                assert cut.start_s <= segment.start_s + 1e-9
                assert min(segment.end_s, heard_until_s) <= cut.end_s + 1e-9
            else:  # and nothing of any other
                assert segment.end_s <= cut.start_s + 1e-9 or segment.start_s >= cut.end_s - 1e-9
        spans = [by_text[text] for text in inside]
        assert all(after.start_s - before.end_s <= LONGEST_PAUSE_S for before, after in pairwise(spans))


def test_the_memory_of_a_cut_grows_as_its_recording_does():
    segments = tuple(Segment(4.0 * i, 4.0 * i + 3, "א") for i in range(6_000))
    tracemalloc.start()
    cuts, unused = recut(TimedText(segments, None), 24_000.0, min_s=1.0, max_s=15.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cuts) == 1_500 and not unused and peak < 16 << 20
