"""What a person sees of a run: lines with time and rank in a log file; every kind of record has its words."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hebrew_asr.cli import COMMANDS
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.launching.command import next_commands
from hebrew_asr.logs import log
from hebrew_asr.report.records import CheckpointRecord, EvalRecord, FaultRecord, PhaseRecord, Record, TrainRecord
from hebrew_asr.watching.console import Console
from hebrew_asr.watching.progress import Course

COURSE = Course(recipe=load_recipe("round2"), steps_per_epoch=4, last_step=8, eval_clips=5)
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d rank 3 \| ")
TRAIN = TrainRecord(
    step=7, epoch=1, phase="B", lr={"head": 1e-4}, clips=8, audio_s=20.0, step_s=2.0, loss=1.25, grad_norm=1.0, tokens=9
)
EVAL = EvalRecord(
    step=4, split="sample", wer=0.25, cer=0.1, wer_mode="strict",
    substitutions=1, deletions=2, insertions=3, words=24, clips=5,
)  # fmt: skip
OUT_OF_MEMORY = FaultRecord(
    step=2, kind="out-of-memory", part="forward", ranks=[1, 2], max_micro_batch=2, batching="8 clips per step = …"
)


@pytest.fixture
def lines(capsys, monkeypatch):
    """Shows a record and gives the lines that it printed, without their stamps."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes a file for a terminal then
    console = Console(COURSE, line_every_s=0.0)

    def show(record: Record) -> list[str]:
        console.write(record)
        printed = capsys.readouterr().out.splitlines()
        assert all(STAMP.match(line) for line in printed)
        return [STAMP.sub("", line) for line in printed]

    return show


def test_a_step_names_its_rates_and_what_is_left(lines):
    lines(EVAL)
    (first,) = lines(replace(TRAIN, step=6, step_s=60.0))
    assert "speed 60.00 s for the first step, which may compile" in first
    assert "left unknown until steps are timed" in first
    (line,) = lines(TRAIN)
    assert re.fullmatch(
        r"step 7/8 \| epoch 1 \| phase B \| loss 1\.250 \| speed 4 clips/s, 2\.00 s per step \| "
        r"WER 25\.0% after step 4; best 25\.0% after step 4 \| "
        r"left evaluation in 0:0\d, end in 0:0\d; 0:0\d so far \| rates head 1\.0e-04",
        line,
    )


def test_a_loss_stands_beside_the_guides(lines):
    told, _ = lines(replace(TRAIN, step=100, loss=6.25))
    assert told.startswith(
        "step 100: loss 6.250 nats per token; the guide expects 6.3 to 7.5 (the guide's numbers are 16"
    )
    assert "the guide expects 0.9 to 1.6" in lines(replace(TRAIN, step=8))[0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (EVAL, "WER 25.0% CER 10.0% (strict) on 5 clips of sample: 1 substitution, 2 deletions, 3 insertions in 24"),
        (replace(EVAL, wer_by_set={"kan": 0.3, "d1": 0.125}), "in 24 words; WER by data set: kan 30.0%, d1 12.5%"),
        (PhaseRecord(step=6, name="A", trainable=1000, compared=9, moved=8, frozen=5), "phase A proved: 1,000 weights"),
        (CheckpointRecord(step=4, path="checkpoints/step-000004"), "step 4: checkpoint checkpoints/step-000004"),
        (FaultRecord(step=3, kind="non-finite", clips=["a", "b"]), "gradients were NaN or infinite (clips a, b"),
        (FaultRecord(step=3, kind="unreadable", clips=["a"], reasons=["clip a: gone"]), "skipped: clip a: gone"),
        (
            FaultRecord(step=3, kind="unreadable", split="eval", reasons=["clip a: gone"]),
            "counted as not heard: clip a",
        ),
        (FaultRecord(step=2, kind="damaged checkpoint", reasons=["x is torn"]), "going on from step 2, as x is torn"),
        (FaultRecord(step=2, kind="checkpoint", reasons=["disk full"]), "no checkpoint could be written: disk full"),
        (OUT_OF_MEMORY, "rank 1, 2 ran out of device memory in forward; from here on 8 clips per step"),
        (FaultRecord(step=1, kind="fallback", name="slow", reason="why", ranks=[0]), "rank 0: slow (why)"),
    ],
)
def test_every_record_has_its_words(lines, record, words):
    (line,) = lines(record)
    assert words in line


def test_warnings_go_to_stderr_and_no_rank_is_named_outside_a_job(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    log.warning("disk of %s is full", "x")
    printed = capsys.readouterr()
    assert re.fullmatch(r"[\d-]{10} [\d:]{8} \| warning: disk of x is full\n", printed.err) and not printed.out


def test_the_end_says_where_the_model_is_its_wer_and_what_to_paste(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    console = Console(COURSE)
    console.write(replace(EVAL, wer_low_95=0.2, wer_high_95=0.3, groups=4))
    capsys.readouterr()
    commands = next_commands(tmp_path / "my run", "/clips/צליל 1.wav")
    console.end(8, 60.0, tmp_path / "my run", "last (step 8)", [{"step": 3, "name": "slow attention"}], commands)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"| done: 8 steps in 60 s; model in {tmp_path}/my run/final: last (step 8)")
    assert "WER 25.0% (95 %: 20.0% to 30.0%, over 4 groups)" in printed[1] and "slow attention" in printed[2]
    assert printed[3:] == commands.splitlines()
    for line in printed[4:]:
        program, command, *options = shlex.split(line)
        assert Path(program).is_file() and command in COMMANDS
        assert str(tmp_path / "my run") in options
    assert shlex.split(printed[4])[-1] == "/clips/צליל 1.wav"
