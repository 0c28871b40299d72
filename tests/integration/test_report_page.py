"""The report of a long run in a real browser: 100,000 records and 10,000 clips open at once, and can be searched.

Skipped where Chromium or Playwright is missing. Screenshots are left in the folder ``PAGE_SHOTS`` names, if it is set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.report.clip_page import clips_page
from hebrew_asr.report.page import write_report
from hebrew_asr.text.prompt import build_target
from hebrew_asr.text.scoring import Transcript, figures
from tests.support.browser import CHROMIUM, playwright
from tests.support.report_run import make_run, phase_record, train_record, write_metrics

pytestmark = pytest.mark.integration
CLIPS, STEPS = 10_000, 100_000
OPENS_WITHIN_S = 2.0
"""CPU seconds of the browser's processes, which work side by side: other tests have the same processors."""
WORDS = ("אני", "חושב", "שזה", "מה", "שקרה", "אתמול", "כשהגענו", "הביתה", "אחרי", "יום", "ארוך", "של", "עבודה")
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Every third clip is heard wrong; clip 7 holds markup, and clip 5 has a sound to play."""
    parent = tmp_path_factory.mktemp("long run")
    run = make_run(parent)
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(WORDS, 9)) for _ in range(CLIPS)]
    heard = [
        text if index % 3 else text.replace("יום", "מים").removeprefix(WORDS[0]) for index, text in enumerate(said)
    ]
    heard[7] = f"{MARKUP} מיוחד"
    sounds = parent / "data" / "clips"
    sounds.mkdir(parents=True)
    soundfile.write(sounds / "a b#5.flac", np.zeros(16_000, np.int16), 16_000)
    files = [f"clips/{'a b#5' if index == 5 else index}.flac" for index in range(CLIPS)]
    clips = [Clip(files[i], build_target(text), f"clip-{i}", 4.0, f"speaker-{i % 40}") for i, text in enumerate(said)]
    for name in ("train", "eval"):
        write_manifest(parent / "data" / f"{name}.jsonl", clips if name == "eval" else clips[:1])
    rows = [{"id": c.id, "reference": s, "hypothesis": h} for c, s, h in zip(clips, said, heard, strict=True)]
    (run / "samples" / f"step-{STEPS:06d}-eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"event": "eval", "step": STEPS, "split": "eval", "wer_mode": "strict", "wer": 0.1, "cer": 0.05}
    evaluation |= {"substitutions": 1, "deletions": 1, "insertions": 0, "words": 9 * CLIPS, "clips": CLIPS}
    machines = [
        {"event": "machine", "step": step, "phase": "A", "memory_gib": [30.1, 30.4], "reserved_gib": [33.0, 34.0]}
        | {"power_w": [600.0 + step % 9, 640.0], "utilization_percent": [97, 99], "host_gib": [8.5, 8.6]}
        for step in range(100, STEPS + 1, 100)
    ]
    steps = [train_record(step) for step in range(1, STEPS + 1)]
    write_metrics(run, [phase_record(0, "B"), *steps, *machines, evaluation])
    return write_report(run)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def browser_cpu_s() -> float:
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system + each.children_user + each.children_system for each in times)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_a_long_run_opens_at_once_and_is_searched(browser, report, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    times = []
    for _ in range(2):  # the second is not the browser's own start
        before = browser_cpu_s()
        page.goto(report.as_uri())
        page.wait_for_selector("#clip-list tbody tr")
        times.append(browser_cpu_s() - before)
    assert min(times) < OPENS_WITHIN_S, times
    count, rows = page.locator("#clip-count"), page.locator("#clip-list tbody tr")
    assert count.text_content() == "100 of 10,000 shown, 10,000 in all" and rows.count() == 100
    page.locator("#clip-more").click()
    assert rows.count() == 200
    tallies = [text.split("clip")[0] for text in rows.locator(".tally").all_text_contents()]
    shares = [int(one.split(" in ")[0]) / int(one.split(" in ")[1]) for one in tallies]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0
    page.locator("#clip-query").fill("מיוחד")
    assert rows.count() == 1 and MARKUP in rows.first.text_content(), "text, not markup"
    page.locator("#clip-query").fill("clip-5 speaker-5")
    page.locator("#clip-kind").select_option("right")
    page.locator("#clip-order").select_option("name")
    assert rows.first.locator("small").text_content() == "clip-5 · speaker-5"
    player = rows.first.locator("audio")
    assert player.count() == 1 and player.get_attribute("src").endswith("a%20b%235.flac")
    played = "audio => new Promise(done => { audio.onloadedmetadata = () => done(audio.duration); audio.load() })"
    assert player.evaluate(played) == pytest.approx(1.0)
    page.locator("#clip-query").fill("")
    page.locator("#clip-kind").select_option("wrong")
    wrong = int(count.text_content().split(" of ")[1].split(" ")[0].replace(",", ""))
    assert 1000 < wrong <= CLIPS // 3 + 2
    page.locator("#clip-order").select_option("errors")
    assert "GPU power" in page.locator(".charts").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not complaints
    if folder := os.environ.get("PAGE_SHOTS"):
        page.screenshot(path=f"{folder}/report-{width}-{scheme}.png", full_page=True)
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (400, "light")])
def test_the_page_of_an_evaluation_fits_the_screen(browser, tmp_path, width, scheme):
    said = " ".join(WORDS)
    found = [Transcript(f"clip-{i}", said, said.replace("יום", "מים"), f"g{i}", "d1", 5.0, "") for i in range(3)]
    (tmp_path / "clips.html").write_text(clips_page(found, figures(found), "runs/round2 on eval-d1", {}), "utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((tmp_path / "clips.html").as_uri())
    assert page.locator("tbody tr").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width and not complaints
    context.close()


def test_the_page_of_a_run_that_trains_is_loaded_anew_unless_somebody_searches(browser, tmp_path):
    run, page, loads, complaints = make_run(tmp_path), browser.new_page(), [], []
    summary = (run / "summary.json").rename(run / "summary.away")
    page.on("load", lambda _: loads.append(1))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    page.clock.install()
    page.goto(write_report(run).as_uri())
    with page.expect_event("load"):
        page.clock.run_for(31_000)
    assert page.locator(".state").text_content() == "unfinished"
    summary.rename(run / "summary.json")
    write_report(run)
    page.locator("#clip-query").fill("a")
    page.clock.run_for(61_000)
    page.locator("#clip-query").fill("")
    assert len(loads) == 2, "a query would have been lost"
    with page.expect_event("load"):
        page.clock.run_for(31_000)
    assert page.locator(".state").text_content() == "finished" and not complaints
    page.close()
