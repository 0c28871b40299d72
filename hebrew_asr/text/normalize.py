"""Hebrew text normalization: one versioned function, four named modes.

========  ==========================================================================================================
target    What the model is trained to write. Letters, digits and punctuation stay; the many typings of one sign become
          one. Event tags in ``[...]`` and ``<...>`` go, because they are no speech: a model trained on them writes
          sounds as words, and every metric here ignores them. Words in ``(...)`` stay: in prose they are read aloud.
strict    For our word error rate: same words, whatever the punctuation, pointing or typing. No spelling is folded.
          Words in ``(...)`` count, since the model is trained to write them; only the signs go.
ivrit     The ivrit.ai leaderboard's own normalizer bit for bit, its defects included, for comparison with its table.
lenient   ``strict`` with numbers, abbreviations and a few spellings folded (:mod:`hebrew_asr.text.lenient`).
========  ==========================================================================================================

A number computed on normalized text is only meaningful with the name of its mode.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from hebrew_asr.errors import UsageError
from hebrew_asr.text import lenient
from hebrew_asr.text.characters import (
    BOUND_PREFIX_LETTERS,
    DOUBLE_QUOTES,
    HEBREW_LETTERS,
    HEBREW_SEPARATORS,
    MAQAF,
    QUOTES,
    SINGLE_QUOTES,
    LazyTable,
    is_hebrew_point,
    is_invisible,
)

NORMALIZER_VERSION = "2"
"""Raised whenever any mode's output changes for any input; stored with manifests, checkpoints and results."""

Mode = Literal["target", "strict", "ivrit", "lenient"]


def normalize(text: str, mode: Mode) -> str:
    """Return ``text`` in the form that ``mode`` names (see the module); '' where nothing is left.

    All modes but ``ivrit`` are idempotent and return single-spaced text without space at either end.
    Raises UsageError for an unknown mode.
    """
    match mode:
        case "target":
            return _target(text)
        case "strict":
            return _strict(text)
        case "ivrit":
            return _ivrit(text)
        case "lenient":
            return lenient.fold(_strict(lenient.verbalize(_target(text))))
        case _:
            raise UsageError(f"text normalization: unknown mode {mode!r}; choose one of {', '.join(get_args(Mode))}")


# --- target ---


def _target_character(character: str) -> str | None:
    category = unicodedata.category(character)
    if is_hebrew_point(character) or is_invisible(character):
        return None
    if character in HEBREW_SEPARATORS or category in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    if character in (MAQAF, "\u2010", "\u2011"):  # maqaf, hyphen, non-breaking hyphen
        return "-"
    if character in DOUBLE_QUOTES:
        return '"'
    if character in SINGLE_QUOTES:
        return "'"
    compatible = unicodedata.normalize("NFKC", character)
    # NFC leaves wide letters, the alef-lamed ligature and the alef symbol alone, and spells FB2A as a letter with its
    # point; a target has plain letters only. The same for full-width quotes.
    is_hebrew_form = "\ufb1d" <= character <= "\ufb4f" or "\u2135" <= character <= "\u2138"
    if compatible != character and (is_hebrew_form or QUOTES.issuperset(compatible)):
        return compatible.translate(_TARGET_TABLE)
    return character


_TARGET_TABLE = LazyTable(_target_character)
# What NFC could not join to its letter, as a stress mark on Hebrew, and the combining grapheme joiner U+034F.
_UNCOMPOSED_MARKS = re.compile("[\u0300-\u036f]+")
_TAGS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


def _target(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_TARGET_TABLE))
    text = _UNCOMPOSED_MARKS.sub("", text).replace("''", '"')
    return " ".join(_without_tags(text).split())


def _without_tags(text: str) -> str:
    """Replace tags by a space, the innermost first. A space, since ``a<|1.00|>b`` is two words."""
    replaced = 1
    while replaced:
        text, replaced = _TAGS.subn(" ", text)
    return text


# --- strict ---


def _character_before_nfkc(character: str) -> str | None:
    """Quotes become ASCII first: NFKC turns the acute accent U+00B4 into a space and a mark, and so splits the word."""
    if is_invisible(character) or is_hebrew_point(character):
        return None
    if character == MAQAF:
        return "-"
    if character in HEBREW_SEPARATORS:
        return " "
    parts = character if character in QUOTES else unicodedata.normalize("NFKC", character)
    return character if QUOTES.isdisjoint(parts) else "".join("'" if part in QUOTES else part for part in parts)


def _character_after_nfkc(character: str) -> str | None:
    """Letters, numbers and what a number may contain stay, marks vanish, the rest separates words."""
    category = unicodedata.category(character)
    if category[0] in "LN" or character in ".,":
        return character
    if category[0] == "M" or character == "'":
        return None
    return "-" if category == "Pd" or character == "\u2212" else " "


_BEFORE_NFKC = LazyTable(_character_before_nfkc)
_AFTER_NFKC = LazyTable(_character_after_nfkc)
_HAS_DIGIT = re.compile(r"\d")
# NFKC makes 3½ into 31/2 and 5² into 52.
_DIGIT_BEFORE_COMPATIBLE_DIGIT = re.compile(r"(\d['\u0300-\u036f]*)(?=[²³¹¼-¾⁰-⁹₀-₉⅐-⅟①-⒛])")
# A well-formed grouping only: 1,2,3 and 1,100,2000 are lists.
_THOUSANDS = re.compile(r"(?<![\d,])(?<!\d\.)\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_PREFIX_AND_NUMBER = re.compile(rf"(?<![{HEBREW_LETTERS}])([{BOUND_PREFIX_LETTERS}]{{1,3}})-+(?=\d)")
_OUTSIDE_DECIMALS = re.compile(r"[-,]|(?<!\d)\.|\.(?!\d)")


def _strict(text: str) -> str:
    text = _DIGIT_BEFORE_COMPATIBLE_DIGIT.sub(r"\1 ", text.translate(_BEFORE_NFKC))
    text = _fold_case(unicodedata.normalize("NFKC", text))
    text = _without_tags(text).translate(_AFTER_NFKC)
    if _HAS_DIGIT.search(text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
        text = _PREFIX_AND_NUMBER.sub(r"\1", text)
    # A dropped mark can leave Hangul letters that compose, so normalize once more.
    return unicodedata.normalize("NFC", " ".join(_OUTSIDE_DECIMALS.sub(" ", text).split()))


def _fold_case(text: str) -> str:
    folded = text.casefold()
    return text if folded == text else unicodedata.normalize("NFKC", folded)


# --- ivrit ---

# HebrewTextNormalizer in evaluate_model.py of ivrit-ai/asr-training (61594ef). Its Hebrew(...).no_niqqud() (package
# `hebrew` 0.8.1) deletes the points below and nothing else: te'amim, meteg U+05BD, rafe U+05BF and precomposed letters
# stay, and later turn into spaces. Its shuruk (vav with dagesh) is never met, for the dagesh is deleted earlier.
_IVRIT_DELETED = dict.fromkeys(
    map(
        ord,
        "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
        "\u05b0\u05b1\u05b2\u05b3\u05b4\u05b5\u05b6\u05b7\u05b8\u05b9\u05ba\u05bb\u05bc\u05c1\u05c2\u05c4\u05c5\u05c7"
        "\"'",
    )
)
# BasicTextNormalizer of openai-whisper (whisper/normalizers/basic.py).
_IVRIT_TAGS = re.compile(r"[<\[][^>\]]*[>\]]")
_IVRIT_PARENTHESES = re.compile(r"\([^)]+?\)")
_IVRIT_SYMBOLS = LazyTable(lambda character: " " if unicodedata.category(character)[0] in "MSP" else character)
_SPACES = re.compile(r"\s+")


def _ivrit(text: str) -> str:
    text = text.translate(_IVRIT_DELETED).lower()
    text = _removed(_IVRIT_PARENTHESES, ")", _removed(_IVRIT_TAGS, ">]", text))
    text = unicodedata.normalize("NFKC", text).translate(_IVRIT_SYMBOLS).lower()
    return _SPACES.sub(" ", text)


def _removed(pattern: re.Pattern[str], ends: str, text: str) -> str:
    """Without what matches. Behind the last of the signs in which a match can end, each try would run to the end."""
    end = max(map(text.rfind, ends)) + 1
    return pattern.sub("", text[:end]) + text[end:]
