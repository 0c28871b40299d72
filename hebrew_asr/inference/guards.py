"""What a model that has lost its way writes: the same words again and again, or text without an end."""

from __future__ import annotations

from hebrew_asr.text.repetition import is_repetitive

REPETITION, ENDLESS = "repetition", "endless"


def suspicion(text: str, *, is_cut: bool = False) -> str | None:
    """Why a transcript is probably not what was said; None if nothing speaks against it.

    Args:
        text: of one piece.
        is_cut: the model had not ended when it had written as many tokens as a piece of this length may have.
    """
    return REPETITION if is_repetitive(text) else ENDLESS if is_cut else None
