"""Subtitles in a real browser: lines stand as a reader of Hebrew expects, on a screen that begins from the left.

Skipped where Chromium or Playwright is missing.
"""

from __future__ import annotations

import pytest

from hebrew_asr.inference.long_form import Segment
from hebrew_asr.inference.subtitles import cues
from tests.support.browser import CHROMIUM, playwright

pytestmark = pytest.mark.integration

SEEN = """text => {
    const line = document.createElement("div");
    line.dir = "ltr";
    line.textContent = text;
    document.body.replaceChildren(line);
    const range = document.createRange(), seen = [];
    for (let at = 0; at < text.length; at++) {
        range.setStart(line.firstChild, at);
        range.setEnd(line.firstChild, at + 1);
        const place = range.getBoundingClientRect();
        if (place.width) seen.push([place.left, text[at]]);
    }
    return seen.sort((a, b) => a[0] - b[0]).map(pair => pair[1]).join("");
}"""
"""The characters of a line as they stand from left to right; brackets as they are written, not as they are drawn."""
FROM_THE_LEFT = {
    "באמת?": "?תמאב",
    "שלום עולם": "םלוע םולש",
    'הוא אמר: "שלום", והלך…': '…ךלהו ,"םולש" :רמא אוה',
    "(ב-2024) היו 3.5% יותר": "רתוי 3.5% ויה )2024-ב(",
    "אני לומד C++ היום.": ".םויה C++ דמול ינא",
    "אני לומד C++, ואז": "זאו ,C++ דמול ינא",
    "כתבו ב-C++.": ".C++-ב ובתכ",
    'גם ב־C++, ו-"C#"?': '?"C#"-ו ,C++־ב םג',
    "ה-.NET של היום": "םויה לש .NET-ה",
    "זה Visual C++ 2019 הישן": "ןשיה Visual C++ 2019 הז",
    "למשל e.g. בדיקה של המילים": "םילימה לש הקידב e.g. לשמל",
    "אני לומד Python.": ".Python דמול ינא",
    "ראו https://ivrit.ai/he/, תודה": "הדות ,https://ivrit.ai/he/ ואר",
    "אמרתי OK!": "!OK יתרמא",
    "צה״ל (IDF), ד״ר Cohen.": ".Cohen ר״ד ,)IDF( ל״הצ",
}


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page()
        chromium.close()


def test_lines_stand_as_they_are_read(page):
    shown = {text: [line for cue in cues([Segment(0, 5, text)]) for line in cue.lines] for text in FROM_THE_LEFT}
    seen = {text: [page.evaluate(SEEN, line) for line in lines] for text, lines in shown.items()}
    assert seen == {text: [line] for text, line in FROM_THE_LEFT.items()}
    assert sum(page.evaluate(SEEN, text) != line for text, line in FROM_THE_LEFT.items()) > 10, "without the marks"
