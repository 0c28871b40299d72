"""The live view, in a real pseudo-terminal: what stands on the screen while records come, and after."""

from __future__ import annotations

import io
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.report.records import EvalRecord, Sample, TrainRecord
from hebrew_asr.watching.panel import LogConsole, view
from hebrew_asr.watching.progress import Course, Progress, clock, sparkline
from tests.support.terminal import CTRL_C, Terminal, screen

ROOT = Path(__file__).parents[2]
RECIPE = load_recipe("round2", ["evaluation.every_steps=100", "logging.price_per_hour=36"])
COURSE = Course(recipe=RECIPE, steps_per_epoch=250, last_step=1250, eval_clips=1000)
STEP = TrainRecord(
    step=1, epoch=1, phase="B", lr={"projector": 2e-4, "head": 1e-4},
    clips=64, audio_s=280.0, step_s=0.5, data_wait_s=0.1, loss=2.0,
)  # fmt: skip
EVALUATION = EvalRecord(
    step=100, split="sample", wer=0.5, cer=0.2, wer_mode="strict", substitutions=1, deletions=2, insertions=3, words=12,
    clips=100, wer_low_95=0.4, wer_high_95=0.625, groups=7, eval_s=5.0,
    heard=[Sample("a", "שלום עולם", "שלום"), Sample("b", "ילדה כותבת", "")],
)  # fmt: skip
SCRIPT = """
import os, sys, time
from dataclasses import replace
from tests.unit.test_live_view import COURSE, EVALUATION, STEP
from hebrew_asr.launching.stopping import StopRequest
from hebrew_asr.logs import log
from hebrew_asr.watching.console import Console
from hebrew_asr.report.records import MachineRecord
from hebrew_asr.streams import outlive_the_terminal

outlive_the_terminal()
console, stop = Console(COURSE), StopRequest()
stop.install()
stop.on_ask.append(console.close)
console.say("a line above " + "x" * 100)
for step in range(1, 121):
    console.write(replace(STEP, step=step, loss=4 - step / 100))
console.write(MachineRecord(step=120, phase="B", memory_gib=[27.5, 28.0]))
console.write(replace(STEP, step=600, epoch=3, phase="A"))
console.write(MachineRecord(step=600, phase="A", memory_gib=[30.0, 29.0]))
console.write(EVALUATION)
console.now("step 600: measuring WER on 9,832 clips")
stop.unsaved = True
log.warning("a warning of ours")
for number in range(50):
    console.say(f"line {number}")
    log.info(f"other line {number}")
time.sleep(1.2)  # in which the view is drawn once more
print("READY")
while stop.reason is None:
    time.sleep(0.05)
time.sleep(1.2)  # in which the view is not drawn any more
print("stopped after step 600", file=sys.stderr)
"""


def test_what_is_asked_for_goes_where_standard_output_does_and_a_bar_to_the_terminal(tmp_path):
    from tests.support.tiny_task import environment

    script = (
        "import os, sys\n"
        "from hebrew_asr.inference.progress import loading, sound_progress\n"
        "with loading():\n"
        "    pass\n"
        "with sound_progress(10) as progress:\n"
        "    progress.add(5)\n"
        "    progress.write('a.mp3\\t' + 'שלום ' * 40 + '\\n')\n"
        "    os.write(2, b'[src/libmpg123/layer3.c] error: big_values too large!\\n')\n"
        "    print('a warning', file=sys.stderr)\n"
        "    progress.tell('1 recording')\n"
        "print('the end', file=sys.stderr)\n"
    )
    shown = {}
    for name, ending in (("file", f">'{tmp_path / 'text'}'"), ("terminal", ""), ("dumb", "")):
        terminal = Terminal(
            ["sh", "-c", f'"{sys.executable}" -c "$SCRIPT" {ending}'],
            environment=environment() | {"SCRIPT": script, "TERM": "dumb" if name == "dumb" else "xterm"},
            folder=ROOT,
        )
        assert terminal.process.wait(timeout=30) == 0, terminal.text
        terminal.drain()
        shown[name] = terminal.text
    assert (tmp_path / "text").read_text() == "a.mp3\t" + "שלום " * 40 + "\n"
    assert "שלום" not in shown["file"] and "decoding" in shown["file"]
    assert "a.mp3\t" + "שלום " * 40 + "\n" in shown["terminal"]
    assert shown["dumb"] == "a.mp3\t" + "שלום " * 40 + "\na warning\n1 recording\nthe end\n"
    for text in shown.values():
        assert [line for line in screen(text) if line][-3:] == ["a warning", "1 recording", "the end"]
        assert "libmpg123" not in text and not {"decoding", "loading"} & set("".join(screen(text)).split())
    assert "loading the model" in shown["file"] and "loading the model" in shown["terminal"]


def test_what_stands_on_a_terminal():
    from tests.support.tiny_task import environment, wait_for  # loads torch, which the script would load with this file

    terminal = Terminal(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        environment=environment() | {"COLUMNS": "100", "LINES": "40"},
        folder=ROOT,
    )
    wait_for(
        lambda: "READY" in terminal.text and "measuring" in terminal.text,
        lambda: terminal.process.poll() is not None and terminal.text,
        60,
    )
    terminal.type(CTRL_C)
    assert terminal.process.wait(timeout=30) == 0, terminal.text
    terminal.drain()
    assert "\x1b[?25l" not in terminal.text, "a run that is killed would leave no cursor"
    shown = [line for line in screen(terminal.text, 100, 40) if line]
    assert "x" * 100 in "".join(shown) and any("warning: a warning of ours" in line for line in shown)
    view = shown[-15:]
    assert view[-1] == "stopped after step 600"
    rows = {line[:7].strip(): line[7:] for line in view}
    assert rows["loss"].startswith("2.000, falling: ")
    assert rows["speed"] == "128 clips/s, 0.50 s per step, 20% of it waiting for data"
    assert rows["rates"] == "projector 2.0e-04  head 1.0e-04"
    assert rows["memory"].startswith("30.0 GiB on the fullest GPU in phase A, +2.0 GiB since phase B (the guide")
    assert rows["WER"].startswith("50.0% after step 100; best 50.0% after step 100")
    assert rows["left"].startswith("evaluation in ") and " end in " in rows["left"]
    assert rows["cost"].startswith("0.") and rows["now"] == "step 600: measuring WER on 9,832 clips"
    assert [line[7:] for line in view if line.startswith(("said", "heard"))] == [
        "שלום עולם",
        "שלום",
        "ילדה כותבת",
        "(nothing)",
    ]
    assert any(line.startswith("48% phase A, epoch 3 of 5, step 600 of 1,250 ") for line in view)
    assert "".join(shown).count("step 600 of 1,250") == 1, "an older view is left on the screen"


@pytest.fixture
def progress() -> Progress:
    """After the 250th step, with a sample and a whole split measured."""
    progress = Progress(COURSE)
    for step in range(1, 251):
        compiles = 100.0 if step == 1 else 0.5
        progress.take(replace(STEP, step=step, step_s=compiles, loss=float("nan") if step == 240 else 4 - step / 100))
    progress.take(EVALUATION)
    progress.take(replace(EVALUATION, step=250, split="eval", clips=1000, wer=0.44, sample_wer=0.6, eval_s=40.0))
    return progress


def test_time_left_counts_steps_and_evaluations(progress):
    """Steps 250 to 1250: every 100th measures the sample in 5 s, every 250th the whole split in 40 s."""
    assert progress.seconds_to_evaluation() == pytest.approx(50 * 0.5, abs=2)
    whole = [500, 750, 1000, 1250]
    assert [step for step, is_whole in COURSE.evaluations_after(250) if is_whole] == whole
    samples = [step for step in range(300, 1250, 100) if step not in whole]
    assert progress.seconds_to_end() == pytest.approx(1000 * 0.5 + 4 * 40 + len(samples) * 5, abs=2)
    assert progress.step_s == 0.5 and progress.clips_per_s == 128


def test_a_phases_first_step_which_compiles_is_no_pace(progress):
    progress.take(replace(STEP, step=251, phase="A", step_s=60.0))
    assert progress.step_s == 0.5, "that of the phase before"
    progress.take(replace(STEP, step=252, phase="A", step_s=0.75, clips=48))
    assert progress.step_s == 0.75 and progress.clips_per_s == 64


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal(progress, columns):
    """Whatever was heard: a line too many, and the view would be drawn below its older self."""
    odd = "שלום \x1b[31m\n\r\t\x08👍 日本語 " * 9
    progress.take(replace(EVALUATION, heard=[Sample("a", odd, odd), Sample("b", "a\u2028b", "\n")]))
    printed = io.StringIO()
    LogConsole(file=printed, width=columns, highlight=False).print(view(progress, "measuring WER on 9,832 clips"))
    lines = printed.getvalue().splitlines()
    names = ["now", "loss", "speed", "rates", "WER", "said", "heard", "said", "heard", "left", "cost"]
    assert [line[:7].strip() for line in lines[1:]] == names and "\x1b" not in printed.getvalue()
    assert max(map(cell_len, lines)) <= columns and lines[0].startswith("20% ")


def test_trends_are_of_like_with_like(progress):
    """Of the sample's clips also where the whole split was measured; a loss that is not a number is in no trend."""
    now, before, count = progress.loss_trend
    assert count == 50 and now < before
    assert progress.rates == [(100, 0.5), (250, 0.6)] and progress.best_rate == (100, 0.5)
    assert sparkline([3, 2, 1], 2) == "█▁" and sparkline([1, 1], 9) == "▁▁" and clock(3725) == "1:02:05"


def test_after_a_resume_time_cost_and_rates_go_on():
    progress = Progress(replace(COURSE, done_steps=1249, seconds_before=7200.0, rates=((100, 0.3), (1200, 0.4))))
    assert progress.seconds_to_end() is None and progress.best_rate == (100, 0.3)
    assert progress.cost == pytest.approx(72, abs=0.5)
    progress.take(replace(STEP, step=1250))
    assert progress.seconds_to_evaluation() is None and progress.seconds_to_end() == 0
