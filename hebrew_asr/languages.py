"""Languages as people name them, and as the model is told them: ``he``, ``iw`` and ``עברית`` are ``Hebrew``."""

from __future__ import annotations

from hebrew_asr.errors import UsageError, nearest

HEBREW = "Hebrew"
AUTO = "auto"
"""Lets the model name the language itself."""

_NAMES = {
    "ar": "Arabic",
    "yue": "Cantonese",
    "zh": "Chinese",
    "cs": "Czech",
    "da": "Danish",
    "nl": "Dutch",
    "en": "English",
    "fil": "Filipino",
    "fi": "Finnish",
    "fr": "French",
    "de": "German",
    "el": "Greek",
    "he": HEBREW,
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "mk": "Macedonian",
    "ms": "Malay",
    "fa": "Persian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "es": "Spanish",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "vi": "Vietnamese",
}
"""The 30 languages of Qwen3-ASR by transformers' codes (``models/qwen3_asr/processing_qwen3_asr.py``), and ours."""

_ALSO = {
    **{"iw": "he", "heb": "he", "עברית": "he", "ivrit": "he"},
    **{"ara": "ar", "العربية": "ar", "ערבית": "ar", "cmn": "zh", "zho": "zh", "chi": "zh", "mandarin": "zh"},
    **{"ces": "cs", "cze": "cs", "dan": "da", "nld": "nl", "dut": "nl", "eng": "en", "אנגלית": "en", "tl": "fil"},
    **{"fin": "fi", "fra": "fr", "fre": "fr", "צרפתית": "fr", "deu": "de", "ger": "de", "גרמנית": "de", "ell": "el"},
    **{"gre": "el", "hin": "hi", "hun": "hu", "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "mkd": "mk"},
    **{"mac": "mk", "msa": "ms", "may": "ms", "fas": "fa", "per": "fa", "farsi": "fa", "pol": "pl", "por": "pt"},
    **{"ron": "ro", "rum": "ro", "rus": "ru", "русский": "ru", "רוסית": "ru", "spa": "es", "ספרדית": "es"},
    **{"swe": "sv", "tha": "th", "tur": "tr", "vie": "vi", "tagalog": "fil"},
}
"""ISO 639-2 codes, the old code of Hebrew, and names in Hebrew and in the language itself."""


def language_name(asked: str) -> str | None:
    """The name that the model was trained with; None for ``auto``.

    Args:
        asked: a name or code in any case, with or without a region (``he-IL``, ``he_IL.UTF-8``).

    Raises:
        UsageError: no language of the model; the message names the nearest one.
    """
    folded = asked.strip().casefold()
    if folded == AUTO:
        return None
    names = {name.casefold(): name for name in _NAMES.values()}
    for candidate in (folded, folded.replace("_", "-").partition("-")[0]):
        code = _ALSO.get(candidate, candidate)
        if found := _NAMES.get(code) or names.get(code):
            return found
    close = nearest(folded, [*names, *_NAMES, *_ALSO])
    hint = f"did you mean {names.get(close, close)}?" if close else "such as Hebrew, he, English or auto"
    raise UsageError(
        f"no language {asked!r} is known to the model: {hint} (known: {', '.join(sorted(names.values()))})"
    )


def is_hebrew(code: str | None) -> bool:
    """Whether a code, as containers give their tracks, is one of Hebrew: ``heb``, ``he``, ``iw``, ``he-IL``."""
    folded = (code or "").casefold().partition("-")[0]
    return _NAMES.get(_ALSO.get(folded, folded)) == HEBREW


def language_code(name: str | None) -> str:
    """The ISO 639-1 code of a name that :func:`language_name` gives, or that a model wrote; itself where unknown."""
    codes = {known: code for code, known in _NAMES.items()}
    return codes.get(name or "", name or "")
