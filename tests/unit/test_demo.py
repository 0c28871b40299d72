"""What the demo shows in the end."""

from __future__ import annotations

import os

import pytest

from hebrew_asr.commands import demo
from hebrew_asr.commands.demo import marked


@pytest.mark.parametrize(
    ("said", "heard", "shown"),
    [
        ("הילדה כותבת, סיפור.", "הילדה כותבת סיפור", "הילדה כותבת סיפור"),
        ("הילדה כותבת סיפור", "הילדה קוראת סיפור", "הילדה [קוראת] סיפור"),
        ("הילדה כותבת סיפור", "הילדה סיפור", "הילדה [–] סיפור"),
        ("הילדה כותבת סיפור", "הילדה כותבת סיפור חדש", "הילדה כותבת סיפור [חדש]"),
        ("שלום", "", "[–]"),
    ],
)
def test_errors_are_marked(said, heard, shown):
    assert marked(said, heard) == shown


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone")
def test_speech_takes_the_cores_that_it_may_use(monkeypatch):
    """In a container of one of 128 cores, 128 processes would each load the speech engine."""
    asked = {}
    monkeypatch.setattr("hebrew_asr.demo.synthesis.synthesize_corpus", lambda folder, **more: asked.update(more))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        demo._synthetic_data()
    finally:
        os.sched_setaffinity(0, usable)
    assert asked["processes"] == 1
