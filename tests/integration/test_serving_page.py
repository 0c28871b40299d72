"""The page of ``hebrew-asr serve`` in a real browser: a file, the microphone, refusals, at two widths.

Skipped where Chromium or Playwright is missing. Screenshots are left in the folder ``PAGE_SHOTS`` names, if it is set.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.serving.app import Limits
from tests.support.browser import CHROMIUM, playwright
from tests.support.served import RATE, Measuring, served, wav

pytestmark = pytest.mark.integration
TOKEN = "secret"
MARKUP = "<img src=x onerror=alert(1)>"


class Marking(Measuring):
    """Writes markup too, which the page must show as text."""

    def in_language(self, language):
        return self

    def hear(self, clips, contexts=()):
        heard = super().hear(clips, contexts)
        return [type(one)(f"שלום {MARKUP} {one.text}", one.language, False) for one in heard]


class Held(Marking):
    """Answers when it may."""

    def __init__(self):
        super().__init__()
        self.may_go = threading.Event()

    def hear(self, clips, contexts=()):
        self.may_go.wait(60)
        return super().hear(clips, contexts)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Two sentences with a pause of 2 s between."""
    one, two = (speak(full_sentences()[number].phonemes, Voice("m3", 180, 45)) for number in (0, 7))
    file = tmp_path_factory.mktemp("sound") / "שיחה.wav"
    file.write_bytes(wav(np.concatenate([one, np.zeros(2 * RATE, np.float32), two, np.zeros(RATE, np.float32)])))
    return file


@pytest.fixture(scope="module")
def browser(sound):
    microphone = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={sound}"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-fake-ui-for-media-stream", *microphone]
        )
        yield chromium
        chromium.close()


@pytest.fixture(params=[(400, "light"), (1200, "dark")], ids=["400 px", "1200 px"])
def look(request, browser):
    """A new page, and what its console complained of."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page, complaints
    context.close()


def until(page, condition: str) -> None:
    """Wait for a condition. Playwright's own wait evaluates it in the page, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not in 10 s: {condition}")


def shoot(page, name: str) -> None:
    if folder := os.environ.get("PAGE_SHOTS"):
        page.screenshot(path=f"{folder}/{name}-{page.viewport_size['width']}.png", full_page=True)


def test_a_file_and_the_microphone_are_heard_shown_played_and_saved(look, sound):
    page, complaints = look
    with served(Limits(), Marking()) as url:
        page.goto(url)
        shoot(page, "empty")
        assert page.evaluate("getComputedStyle(document.body).direction") == "rtl"
        page.set_input_files("#file", sound)
        page.wait_for_selector("#saves:not([hidden])")
        shown = page.locator("#segments li")
        assert shown.count() == 2 and MARKUP in shown.first.inner_text()
        assert page.locator("#name").inner_text() == sound.name
        assert not page.locator("#problem, #working").locator("visible=true").count()
        shoot(page, "file")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        shown.nth(1).click()
        until(page, "document.getElementById('player').currentTime > 1.5")
        page.wait_for_selector("#segments li:nth-child(2) .now")
        for kind, begins in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n"), ("txt", "שלום <img")):
            with page.expect_download() as download:
                page.click(f"[data-save={kind}]")
            assert download.value.suggested_filename == f"{sound.stem}.{kind}"
            assert download.value.path().read_text(encoding="utf-8").startswith(begins)

        page.click("#record")
        page.wait_for_selector("#record[aria-pressed=true]")
        page.wait_for_timeout(4000)
        shoot(page, "recording")
        page.click("#record")
        page.locator("#name").get_by_text("recording.webm").wait_for()
        page.wait_for_selector("#saves:not([hidden])")
        assert page.locator("#segments li").count() >= 1
        until(page, "document.getElementById('player').duration < 100")
    assert not complaints


def test_recordings_and_folders_wait_in_line_and_a_bad_one_stops_none(look, sound, tmp_path):
    page, complaints = look
    folder, letter = tmp_path / "שיחות", tmp_path / "letter.wav"
    (folder / "more").mkdir(parents=True)
    for place in (folder / "b.wav", folder / "more" / "a.wav"):
        place.write_bytes(sound.read_bytes())
    for place in (letter, folder / "notes.txt", folder / ".hidden.wav"):
        place.write_text("no sound", encoding="utf-8")
    marks = page.locator("#recordings li span")
    model = Held()
    with served(Limits(), model) as url:
        page.goto(url)
        page.set_input_files("#file", [sound, letter, sound])
        page.wait_for_selector("#recordings .working")
        drop(page, [folder, sound])
        until(page, "document.querySelectorAll('#recordings li').length === 6")
        assert marks.all_inner_texts() == ["●", "…", "…", "…", "…", "…"], "one that is dropped ends the one before"
        page.locator("#working:not([hidden])").wait_for()
        shoot(page, "several")
        model.may_go.set()
        until(page, "!document.querySelector('#recordings .waiting, #recordings .working')")
        assert marks.all_inner_texts() == ["✓", "✗", "✓", "✓", "✓", "✓"]
        names = page.locator("#recordings bdi").all_inner_texts()
        assert names == [sound.name, letter.name, sound.name, "b.wav", "a.wav", sound.name]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        page.locator("#recordings button").nth(1).click()
        page.locator("#problem").get_by_text("letter.wav").wait_for()
        assert not page.locator("#saves").is_visible()
        page.locator("#recordings button").nth(3).click()
        assert page.locator("#name").inner_text() == "b.wav" and page.locator("#segments li").count() == 2
        assert page.locator("#saves").is_visible() and not page.locator("#problem").is_visible()
        shoot(page, "several-done")

        model.may_go.clear()
        page.set_input_files("#file", sound)
        page.click("#cancel")
        (folder / "b.wav").unlink()
        (folder / "more" / "a.wav").unlink()
        drop(page, [folder])
        page.locator("#problem").get_by_text("no recording in this folder").wait_for()
        assert marks.last.inner_text() == "–"
        model.may_go.set()
    assert not complaints


def drop(page, paths: list[Path]) -> None:
    """As a person drops them: a script of the page cannot make a folder."""
    field = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    at = {"x": field["x"] + 9, "y": field["y"] + 9, "data": data}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at})


def test_refusals_are_told_in_words(look, sound, tmp_path):
    page, complaints = look
    (tmp_path / "letter.wav").write_text("no sound", encoding="utf-8")
    with (tmp_path / "large.wav").open("wb") as large:
        large.truncate(3 << 20)
    problem = page.locator("#problem")
    with served(Limits(2, token=TOKEN)) as url:
        page.goto(url)
        page.set_input_files("#file", sound)
        for wrong in ("guess", "סוד"):
            page.fill("#token", wrong)
            page.click("#admission button")
            page.wait_for_selector("#problem:not([hidden])")
        problem.get_by_text("This token is not the right one").wait_for()
        shoot(page, "token")
        page.fill("#token", TOKEN)
        page.click("#admission button")
        page.wait_for_selector("#saves:not([hidden])")
        assert not problem.is_visible() and not page.locator("#admission").is_visible()
        page.set_input_files("#file", tmp_path / "letter.wav")
        problem.get_by_text("letter.wav").wait_for()
        shoot(page, "refused")
        page.set_input_files("#file", tmp_path / "large.wav")
        problem.get_by_text("too large").wait_for()
    page.set_input_files("#file", sound)
    problem.get_by_text("does not answer").wait_for()
    # The browser itself writes a line for each 401 and for a connection that is refused.
    assert all("401" in complaint or "ERR_CONNECTION_REFUSED" in complaint for complaint in complaints), complaints
