"""What prepare shows of its progress: a bar on a terminal, and lines where nobody sees one."""

from __future__ import annotations

import io
import sys

import pytest

from hebrew_asr.corpus.preparation.convert import UnitSummary
from hebrew_asr.corpus.preparation.progress import Progress


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_last_line_is_the_bar_or_a_line_and_not_both(monkeypatch, is_terminal):
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10) as progress:
        progress.expect(2, 10)
        progress.add(UnitSummary(2, 1, 3.0))
    assert ("prepare: 2 of 2 rows" in stream.getvalue()) is not is_terminal
    assert ("preparing" in stream.getvalue()) is is_terminal
    with pytest.raises(ValueError, match="fault"), Progress(10):
        raise ValueError("fault")
    assert "0 of 0 rows" not in stream.getvalue()
