"""What the ``lenient`` mode folds beyond ``strict``, for an error rate that forgives how a word was written.

The rule for every entry: two spellings of the same spoken words, with the same meaning. Nothing is learned from a
model's errors. Folded are:

* digits and number words, with their gender and construct forms and the optional "and" inside a number
  (3 = שלוש = שלושה = שלושת; ב-24 = בעשרים וארבע = בעשרים וארבעה; 3.5 = שלוש נקודה חמש);
* percent, shekel, dollar and euro signs beside a number (50% = חמישים אחוז), with the unit's plural after a number;
* abbreviations that are always read in full (ד"ר = דוקטור), not those read as words (צה"ל, מנכ"ל, חו"ל);
* full (plene) and defective spellings of some common words (עניין = ענין), also after bound prefixes;
* Yiddish digraph characters and the two letters they stand for.

Not folded: ordinals, "and a half" for .5, dates, and any word that merely sounds like another.
The result is for comparison, not for display.
"""

from __future__ import annotations

import re
import unicodedata

from hebrew_asr.text.characters import BOUND_PREFIX_LETTERS, HEBREW_LETTERS, bound_prefix_splits
from hebrew_asr.text.numbers import cardinal, decimal_words, number_at, number_words

ABBREVIATIONS = {
    'ד"ר': "דוקטור",
    "דר'": "דוקטור",
    "פרופ'": "פרופסור",
    "גב'": "גברת",
    "מס'": "מספר",
    "רח'": "רחוב",
    "עמ'": "עמוד",
    "וכו'": "וכולי",
    'עו"ד': "עורך דין",
    'ארה"ב': "ארצות הברית",
    'ש"ח': "שקל",
    'ק"מ': "קילומטר",
    'ס"מ': "סנטימטר",
    'ק"ג': "קילוגרם",
    'ע"י': "על ידי",
    'ע"פ': "על פי",
    'עפ"י': "על פי",
    'אח"כ': "אחר כך",
    'כ"כ': "כל כך",
    'בד"כ': "בדרך כלל",
    'סה"כ': "סך הכול",
    'בי"ס': "בית ספר",
    'ביה"ס': "בית הספר",
}
"""Abbreviation, with its ASCII gershayim or geresh → the words that it is read as."""

SPELLING_VARIANTS = {
    # Vowel letters: the full spelling of the Academy of the Hebrew Language and the older one.
    "ענין": "עניין",
    "ענינים": "עניינים",
    "מענין": "מעניין",
    "מענינת": "מעניינת",
    "בנין": "בניין",
    "בנינים": "בניינים",
    "תכנית": "תוכנית",
    "תכניות": "תוכניות",
    "אמא": "אימא",
    "אמהות": "אימהות",
    "אשה": "אישה",
    "מלה": "מילה",
    "מאד": "מאוד",
    "הכל": "הכול",
    "צהרים": "צהריים",
    "עינים": "עיניים",
    "ידים": "ידיים",
    "שניה": "שנייה",
    "היתה": "הייתה",
    "זכרון": "זיכרון",
    "נסיון": "ניסיון",
    "פיתרון": "פתרון",
    "אמנם": "אומנם",
    "מסויים": "מסוים",
    "מסויימת": "מסוימת",
    "מצויין": "מצוין",
    "מצויינת": "מצוינת",
    "עתון": "עיתון",
    "שלחן": "שולחן",
    # Consonantal vav is doubled inside a word; at its head וודאי may also be "and certainly".
    "טלויזיה": "טלוויזיה",
    "תקוה": "תקווה",
    "בודאי": "בוודאי",
    "הויכוח": "הוויכוח",
    # Aramaic or Hebrew ending.
    "דוגמא": "דוגמה",
    "סיסמא": "סיסמה",
    "גירסה": "גרסה",
    "גירסא": "גרסה",
}
"""Spelling → the one it is folded to."""

_YIDDISH_DIGRAPHS = str.maketrans({"װ": "וו", "ױ": "וי", "ײ": "יי"})
_UNIT_OF_SIGN = {
    sign: unit for unit, signs in {"אחוז": "%٪﹪％", "שקל": "₪", "דולר": "$﹩＄", "אירו": "€"}.items() for sign in signs
}
_UNIT_SINGULARS = {"אחוזים": "אחוז", "שקלים": "שקל", "דולרים": "דולר"}

_SIGN = "[" + "".join(map(re.escape, _UNIT_OF_SIGN)) + "]"
_NUMBER = r"\d+(?:[.,]\d+)*"
_SIGN_AND_NUMBER = re.compile(rf"({_SIGN})\s?({_NUMBER})|(?<!\d)(?<!\d[.,])({_NUMBER})\s?({_SIGN})(?!\d)")
"""A number is tried from its first digit only: from each of them, one of 20,000 would take a minute."""
_ABBREVIATION = re.compile(
    rf"""(?<![{HEBREW_LETTERS}])(?<![{HEBREW_LETTERS}]["'])"""
    rf"""([{BOUND_PREFIX_LETTERS}]{{0,3}})({"|".join(ABBREVIATIONS)})(?!["']?[{HEBREW_LETTERS}])"""
)
_NUMBER_TOKEN = re.compile(rf"([{BOUND_PREFIX_LETTERS}]{{0,3}})(\d+)(?:\.(\d+))?")


def verbalize(target_text: str) -> str:
    """Write out abbreviations and unit signs, in text of the ``target`` form, before ``strict`` removes their marks."""
    target_text = _ABBREVIATION.sub(lambda found: found[1] + ABBREVIATIONS[found[2]], target_text)
    return _SIGN_AND_NUMBER.sub(_number_before_unit, target_text)


def fold(strict_text: str) -> str:
    """Fold numbers and spellings word by word, in text of the ``strict`` form."""
    tokens = strict_text.translate(_YIDDISH_DIGRAPHS).split()
    words = [word for token in tokens for word in _spoken(token)]
    folded: list[str] = []
    position, after_number = 0, False
    while position < len(words):
        number = number_at(words, position)
        if number:
            first, *rest = cardinal(number.value)
            folded += [number.prefix + first, *rest]
            position += number.length
        else:
            word = words[position]
            folded.append(_fold_spelling(_UNIT_SINGULARS.get(word, word) if after_number else word))
            position += 1
        after_number = number is not None
    return " ".join(folded)


def _number_before_unit(found: re.Match[str]) -> str:
    sign, number = (found[1], found[2]) if found[1] else (found[4], found[3])
    return f"{number} {_UNIT_OF_SIGN[sign]} "


def _spoken(token: str) -> list[str]:
    """The words in which a number with its bound prefix is spoken; any other token stays as it is."""
    found = _NUMBER_TOKEN.fullmatch(token)
    if not found:
        return [token]
    whole, fraction = _ascii_digits(found[2]), _ascii_digits(found[3] or "")
    first, *rest = decimal_words(whole, fraction) if fraction else number_words(whole)
    return [found[1] + first, *rest]


def _ascii_digits(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)


def _fold_spelling(word: str) -> str:
    for prefix, bare in bound_prefix_splits(word):
        if bare in SPELLING_VARIANTS:
            return prefix + SPELLING_VARIANTS[bare]
    return word
