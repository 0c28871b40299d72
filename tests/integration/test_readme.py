"""README's commands, in its order and as it writes them, on a folder of recordings and a tiny model.

A command that this cannot run names the test that does; one that is in neither place fails.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from hebrew_asr.cli import main
from hebrew_asr.commands import demo
from hebrew_asr.commands.train import Command as Train
from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.training.arguments import TrainArguments, as_argv
from tests.support import corpora
from tests.support.documented import ROOT, blocks, programs, spans, words_of
from tests.support.tiny_task import RECIPE_CHANGES, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ELSEWHERE = {
    "launch/demo": "test_readme.py::test_the_demo",
    "launch/test": "../unit/test_launchers.py::test_shells_take_the_scripts",
    "source .venv/bin/activate": "../unit/test_launchers.py::test_shells_take_the_scripts",
    "export HF_TOKEN=…": "test_prepare_hub.py::test_gated_set_says_where_to_go",
    "hebrew-asr prepare": "test_prepare_hub.py::test_pinned_download_with_test_shards_held_out",
    "deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json": "test_stopping.py::test_ctrl_c",
    "hebrew-asr eval --model runs/round2 --set eval-d1 --set saspeech=copies/saspeech": (
        "test_eval.py::test_a_copy_of_the_leaderboards_sets"
    ),
}
"""Of code blocks."""
IN_SENTENCES = {
    "launch/demo --data DIR": "test_readme.py::test_the_demo",
    "launch/train --ds a100x8": "../unit/test_launchers.py::test_a_dry_run_says_commands_that_parse",
    "sbatch launch/slurm.sbatch --ds a100x8": "../unit/test_launchers.py::test_a_dry_run_says_commands_that_parse",
    "launch/Dockerfile": "../unit/test_launchers.py::test_the_container_holds_what_it_starts",
    "launch/skypilot.yaml": "../unit/test_launchers.py::test_the_skypilot_task_starts_what_there_is",
    "launch/cluster.md": "test_cluster.py::test_workers_that_die_and_a_scheduler_that_restarts_leave_no_trace",
    "hebrew-asr join knesset crowd --out both": (
        "test_mixture_run.py::test_sets_that_were_prepared_apart_are_learned_as_one"
    ),
    "hebrew-asr train --ds …": "test_stopping.py::test_the_shorthand_and_ctrl_c_in_haste",
    "hebrew-asr train": "test_stopping.py::test_the_shorthand_and_ctrl_c_in_haste",
    "deepspeed --num_gpus N": "test_stopping.py::test_ctrl_c",
    "hebrew-asr prepare": "test_prepare_hub.py::test_pinned_download_with_test_shards_held_out",
    "hebrew-asr bench --ds ds_configs/h200x1.json --model DIR": "test_bench.py::test_bench_measures_both_phases",
    "hebrew-asr lr-range --ds h200x1 --data mine": "test_bench.py::test_a_range_test_raises_rates_and_keeps_nothing",
    "hebrew-asr serve --model runs/round2": "test_serving.py::test_official_client_gets_every_format",
}
STANDS_FOR = {
    "ds_configs/a100x8.json": "cpu",
    "qwen3_asr_round2_data/eval.jsonl": "mine/eval.jsonl",
    "eval.jsonl": "mine/eval.jsonl",
    "DIR": "mine",
}
MAY_LEAVE_WITH = {"doctor": (0, 4), "plan": (0, 4)}
"""What a machine lacks for a run is an answer too."""


@pytest.fixture
def place(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what README's reader has: recordings of some speakers, one talk, and transcripts of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for number in range(20):
        path = tmp_path / "recordings" / f"speaker{number % 10}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(corpora.speech(number, 1.5, "wav"))
        path.with_suffix(".txt").write_text(corpora.sentence(number, 4), encoding="utf-8")
    soundfile.write(tmp_path / "talk.mp3", speak(full_sentences()[0].phonemes, Voice("m3", 180, 45)), 16_000)
    return tmp_path


def typed(line: str, task: Path) -> list[str]:
    """The words after the program, as they are run here."""
    words = [STANDS_FOR.get(word, word) for word in words_of(line)[1:]]
    if words[0] == "train":  # some steps of a tiny model, into the recipe's own run directory
        changes = (*RECIPE_CHANGES, f"model.path={task / 'base'}", "phases.0.epochs=1", "phases.1.epochs=1")
        changes = (*changes, "checkpoints.every_steps=1", "logging.report=true")
        words += [part for change in changes for part in ("--set", change)]
    return words


def test_readme_from_the_top(place, task, monkeypatch, capfd):
    shown = [*blocks("README.md"), *(span for span in spans("README.md") if not span.startswith("-"))]
    lines = [line for line in shown if line not in ELSEWHERE | IN_SENTENCES]
    assert len(lines) > 15
    for line in dict.fromkeys(lines):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("צה״ל, ב־2024\n".encode())))
        words = typed(line, task)
        code = main(words)
        assert code in MAY_LEAVE_WITH.get(words[0], (0,)), f"{line}: {code}\n{capfd.readouterr().err[-3000:]}"
        if words[0] == "audit":
            heard = [json.loads(row) for row in (place / "mine" / "eval.jsonl").read_text().splitlines()]
            table = [f"{row['id']},{row['text'].rpartition('>')[2]}\n" for row in heard]
            (place / "theirs.csv").write_text("".join(["id,text\n", *table]), encoding="utf-8")
    capfd.readouterr()
    for program in programs("README.md"):
        exec(program, {})
        assert re.fullmatch(r".+ \[\d+\.\d+.*\]\n", capfd.readouterr().out), "text, and when it begins"
    made = (
        "runs/round2/final",
        "runs/round2/report.html",
        "subtitles",
        "heard/figures.json",
        "mean",
        "hebrew-model/hf",
    )
    assert not [name for name in made if not (place / name).exists()]


@pytest.mark.parametrize("own", [False, True])
def test_the_demo(own, place, warm, monkeypatch, capfd):
    """With a hundredth of the clips; what it says in the end can be pasted.

    Own recordings are learned for two epochs, by ranks that no launcher starts.
    """
    monkeypatch.setattr(demo, "TRAIN_CLIPS", 64)
    monkeypatch.setattr(demo, "EVAL_CLIPS", 6)

    def some_steps(command: Train) -> int:
        shorter = replace(command, set=[*command.set, "phases.0.epochs=1", "phases.1.epochs=1"])
        arguments = as_argv(shorter, TrainArguments)
        return warm.finish(arguments, ranks=2, port=free_port()).returncode

    if own:
        monkeypatch.setattr(Train, "run", some_steps)
    assert main(["demo", *(["--data", "recordings"] if own else [])]) == 0
    told = capfd.readouterr().out
    assert f"WER of these {demo.SHOWN_CLIPS}: " in told and "==> report: " in told
    if not own:
        return
    commands = told[told.index("next, in any shell:") :].splitlines()[1:]
    transcribe = next(command for command in commands if " transcribe " in command)
    done = subprocess.run(["bash", "-c", transcribe], cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("table", [ELSEWHERE, IN_SENTENCES])
def test_what_is_run_elsewhere_is_in_the_readme_and_in_that_test(table):
    shown = {*blocks("README.md"), *spans("README.md")}
    for line, where in table.items():
        file, name = where.split("::")
        assert line in shown, f"README no longer shows {line}"
        assert f"def {name}(" in (ROOT / "tests" / "integration" / file).read_text(encoding="utf-8"), where
