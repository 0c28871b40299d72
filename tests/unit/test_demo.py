"""What the demo shows in the end."""

from __future__ import annotations

import pytest

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
