"""One row for each rule of the ``strict`` and ``target`` modes, and for the neighbors of each rule."""

from __future__ import annotations

import unicodedata

import pytest

from hebrew_asr.errors import UsageError
from hebrew_asr.text.normalize import normalize

STRICT = [
    ("שָׁלוֹם עוֹלָם", "שלום עולם", "points are no word breaks"),
    ("בְּרֵאשִׁ֖ית בָּרָ֣א", "בראשית ברא", "te'amim"),
    ("הָאָֽרֶץ", "הארץ", "meteg"),
    ("\ufb2aלום", "שלום", "precomposed shin"),
    ("א\ufb1eב", "אב", "varika"),
    ("\ufb4fוהים", "אלוהים", "alef-lamed ligature"),
    ("\ufb21\ufb22\ufb23", "אדה", "wide letters"),
    ("\ufb20\ufb28 \u2135", "עת א", "alternative ayin, wide tav, alef symbol"),
    ("שלו\u0301ם", "שלום", "a Latin stress mark on a Hebrew letter"),
    ("של\u034fום", "שלום", "combining grapheme joiner"),
    ('צה"ל', "צהל", "gershayim: ASCII"),
    ("צה״ל", "צהל", "gershayim: U+05F4"),
    ("צה”ל צה“ל צה„ל", "צהל צהל צהל", "gershayim: curly"),
    ("צה''ל צה׳׳ל צה’’ל", "צהל צהל צהל", "gershayim: two single quotes"),
    ("צה″ל צה¨ל צה˝ל צה＂ל צהʺל", "צהל צהל צהל צהל צהל", "gershayim: primes, accents, full width"),
    ("צ'יפס צ׳יפס צ’יפס צ`יפס צ´יפס", "ציפס ציפס ציפס ציפס ציפס", "geresh"),
    ("צ′יפס צʼיפס צ‘יפס צ‛יפס צ｀יפס צ΄יפס", "ציפס ציפס ציפס ציפס ציפס ציפס", "geresh: rarer typings"),
    ("ג' וכו׳", "ג וכו", "geresh at the end of a word"),
    ("'שלום' „עולם”", "שלום עולם", "quotation marks around words"),
    ("«שלום» עולם", "שלום עולם", "guillemets"),
    ("בית־ספר", "בית ספר", "maqaf"),
    ("בית־־ספר", "בית ספר", "doubled maqaf"),
    ("אֶת־הָאָֽרֶץ", "את הארץ", "maqaf between pointed words"),
    ("בית-ספר בית–ספר בית—ספר בית\u2011ספר", "בית ספר בית ספר בית ספר בית ספר", "hyphen and dashes"),
    ("ויאמר׃ אל׀משה׆הוא", "ויאמר אל משה הוא", "sof pasuq, paseq, nun hafukha"),
    ("\u200fשלום\u200e \u2067עולם\u2069\u061c", "שלום עולם", "bidi controls"),
    ("של\u200dום של\u200bום של\u00adום של\ufeffום", "שלום שלום שלום שלום", "zero widths, soft hyphen, BOM"),
    ("שלום\u00a0עולם\tו\u2028עוד\r\nאחד", "שלום עולם ו עוד אחד", "every kind of space"),
    ("שלום\x00עולם", "שלום עולם", "a control character separates"),
    ("", "", "empty"),
    (" \n ", "", "only space"),
    ("1,234 שקלים", "1234 שקלים", "thousands"),
    ("1,234,567 ל-1,000.5", "1234567 ל1000.5", "several groups; a decimal after them"),
    ("1,2,3", "1 2 3", "a list"),
    ("1,100,2000 2019,2020", "1 100 2000 2019 2020", "lists whose items have three digits and more"),
    ("3.5 אחוז", "3.5 אחוז", "decimal"),
    ("סוף. 5. ו.5 7...8", "סוף 5 ו 5 7 8", "a full stop outside a number"),
    ("ב-2024 ב2024 ב־2024 ב–2024", "ב2024 ב2024 ב2024 ב2024", "bound prefix and number"),
    ("וב-2024 שמה-3 ה-3.5 כ-1,000", "וב2024 שמה3 ה3.5 כ1000", "prefixes of several letters, decimals, thousands"),
    ("תל-5 קו-5 בית-5", "תל 5 קו 5 בית 5", "a word is no bound prefix"),
    ("ב - 2024", "ב 2024", "a spaced dash is a pause"),
    ("50% מהזמן", "50 מהזמן", "percent"),
    ("₪100 $5.50 100₪", "100 5.50 100", "currency"),
    ("3-4 10–20", "3 4 10 20", "ranges"),
    ("12/5/2024 14:30", "12 5 2024 14 30", "date and time"),
    ("054-1234567", "054 1234567", "telephone number"),
    ("3½ 5²", "3 1 2 5 2", "NFKC alone makes 31/2 and 52"),
    ("７ ٧", "7 ٧", "full width is folded; other digits stay numbers of their own script"),
    ("שלום [צחוק] עולם", "שלום עולם", "event tag"),
    ("שלום[צחוק]עולם<נשימה>", "שלום עולם", "event tags with no space"),
    ("[א [ב] ג] ד <ה <ו> ז>", "ד", "nested brackets"),
    ("הוא נולד (בשנת 1948) בחיפה", "הוא נולד בשנת 1948 בחיפה", "words in parentheses are trained, so they count"),
    ("(א (ב) ג) （ד） ⑴ ילד(ה)", "א ב ג ד 1 ילד ה", "parentheses: nested, full width, composed, within a word"),
    ("שלום [עולם (טוב", "שלום עולם טוב", "an open bracket is punctuation"),
    ("［צחוק］ שלום", "שלום", "full-width brackets"),
    ("[מוזיקה]", "", "only an event"),
    ("<|0.00|>שלום<|1.00|><|1.00|>עולם<|2.40|>", "שלום עולם", "Whisper's timestamps never glue"),
    ("<|he|><|transcribe|>שלום<|endoftext|>", "שלום", "Whisper's other tokens"),
    ("Hello, עולם! iPhone", "hello עולם iphone", "code-switch"),
    ("don't don’t", "dont dont", "apostrophe"),
    ("Straße İ", "strasse i", "case folding, then marks"),
    ("café cafe\u0301", "café café", "a composed letter is a letter"),
    ("info@example.co.il", "info example co il", "e-mail"),
    ("😀 שלום 👨‍👩‍👧 1️⃣", "שלום 1", "emoji"),
    ("מלך מלכ", "מלך מלכ", "final letters are not folded"),
    ("תכנית תוכנית", "תכנית תוכנית", "spelling is not folded"),
    ("ײ ױ װ ײַ", "ײ ױ װ ײ", "Yiddish digraphs stay"),
]

TARGET = [
    ("בית־ספר, צה״ל!", 'בית-ספר, צה"ל!', "maqaf and gershayim; punctuation stays"),
    ("הַיי, אֲנִי שָׁאוּל.", "היי, אני שאול.", "points go"),
    ("\ufb2aלום \ufb4fוהים \ufb21\ufb22 \ufb1d", "שלום אלוהים אד י", "plain letters only"),
    ("בְּרֵאשִׁ֖ית׃ אל׀משה", "בראשית אל משה", "te'amim; pointing's separators"),
    ("צ´יפס ג׳ורג’ צ`", "צ'יפס ג'ורג' צ'", "geresh"),
    ("צה”ל צה''ל צה׳׳ל צה＂ל “שלום”", 'צה"ל צה"ל צה"ל צה"ל "שלום"', "gershayim and quotation marks"),
    ("\u200fשל\u200dום\u200e של\u00adום של\u034fום", "שלום שלום שלום", "invisible characters"),
    ("<|0.00|> שלום<|1.00|><|1.00|>עולם<|2.40|>", "שלום עולם", "timestamps"),
    ("שלום [מוזיקה] עולם <רעש>", "שלום עולם", "events are not speech"),
    ("<|im_<x>end|>", "", "nothing that looks like a control token is left"),
    ("שלום (כך) עולם", "שלום (כך) עולם", "parentheses may be read aloud"),
    ("ב־2024, 1,234.5 ו-50%", "ב-2024, 1,234.5 ו-50%", "digits and signs stay"),
    ("בית–ספר — כן…", "בית–ספר — כן…", "other dashes and the ellipsis are punctuation"),
    ("Hello, cafe\u0301!", "Hello, café!", "case stays; NFC"),
    ("שלו\u0301ם", "שלום", "a stress mark"),
    (" א\t\nב\u00a0 ג ", "א ב ג", "spaces"),
    ("[מוזיקה]", "", "only an event: no target"),
]


@pytest.mark.parametrize(("text", "expected", "why"), STRICT, ids=[row[2] for row in STRICT])
def test_strict(text: str, expected: str, why: str) -> None:
    assert normalize(text, "strict") == expected, why
    assert normalize(expected, "strict") == expected, "idempotent"


@pytest.mark.parametrize(("text", "expected", "why"), TARGET, ids=[row[2] for row in TARGET])
def test_target(text: str, expected: str, why: str) -> None:
    assert normalize(text, "target") == expected, why
    assert normalize(expected, "target") == expected, "idempotent"
    assert unicodedata.is_normalized("NFC", expected)


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'loose'.*target, strict, ivrit, lenient"):
        normalize("שלום", "loose")  # type: ignore[arg-type]
