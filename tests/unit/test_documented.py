"""What the pages for users show can be typed: commands, options, files, profiles and recipes that are named exist."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

from hebrew_asr.cli import COMMANDS, main
from hebrew_asr.config.misplaced import refuse_recipe_keys
from hebrew_asr.config.options import option_names, parse_options
from hebrew_asr.config.profiles import load_profile
from hebrew_asr.training.arguments import TrainArguments
from tests.support.documented import PAGES, ROOT, blocks, spans, words_of

PLACEHOLDERS = {"PROFILE": "a100x8", "RUN": "runs/round2", "N": "2", "…": "a100x8", "DIR": "mine"}
OTHERS = r"(source|export|echo|pip|uv|wandb|dask|srun|kill) .*"
"""Of other programs."""
NEEDS_AN_ARGUMENT = {"train": ["--ds", "cpu"], "transcribe": ["--model", "m", "a.mp3"], "export": ["m"]}
"""Commands that sentences name without what they need."""


def command_of(name: str) -> type:
    return importlib.import_module(f"hebrew_asr.commands.{name.replace('-', '_')}").Command


def parsed(options: type, words: list[str]) -> None:
    refuse_recipe_keys(options, words)
    given = parse_options(options, "documented", words)
    if getattr(given, "ds", None) is not None:
        load_profile(given.ds)
    if hasattr(given, "load_recipe"):
        given.load_recipe()


def takes(line: str) -> None:
    """Fails if the command could not be typed."""
    program, *rest = [PLACEHOLDERS.get(word, word) for word in words_of(line)]
    if program == "hebrew-asr":
        parsed(command_of(rest[0]), rest[1:] or NEEDS_AN_ARGUMENT.get(rest[0], []))
    elif program == "deepspeed":
        script = next((word for word in rest if word.endswith(".py")), None)
        assert script is None or (ROOT / script).is_file()
        assert script is None or parsed(TrainArguments, rest[rest.index(script) + 1 :]) is None
    elif program == "python":
        assert rest[:2] == ["-m", "pytest"]
    else:
        script = rest.pop(0) if program == "sbatch" else program
        assert (ROOT / script).is_file() and (program == "sbatch" or not rest or os.access(ROOT / script, os.X_OK))
        if script in ("launch/train", "launch/slurm.sbatch") and rest:
            parsed(command_of("train"), rest)
        elif script == "launch/demo":
            parsed(command_of("demo"), rest)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_can_be_typed(page, capsys):
    every_option = {f"--{name}" for command in COMMANDS for name in option_names(command_of(command))}
    every_option |= {"--dry-run", "--num_gpus"}
    wrong = []
    for line in dict.fromkeys([*blocks(page), *spans(page)]):
        try:
            if line.startswith("--"):
                option, *_ = shlex.split(line)
                assert option in every_option
            elif not re.fullmatch(OTHERS, line) or "hebrew-asr" in line:
                takes(line)
        except (Exception, SystemExit) as error:
            wrong.append(f"{line}: {error!r} {capsys.readouterr().err}")
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_commands_that_can_be_typed(command, capsys):
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out.splitlines()
    examples = [number for number, line in enumerate(told) if line.startswith("$ hebrew-asr ")]
    assert told[0].startswith(f"usage: hebrew-asr {command}") and min(examples) < 20, "on the first screen"
    for number in examples:
        takes(told[number].removeprefix("$ ").partition(" < ")[0])


def test_files_that_the_pages_name_exist():
    missing = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        named += re.findall(r"(?<![\w/])((?:launch|ds_configs|hebrew_asr|tests|\.github)/[\w./-]*\w)", text)
        missing += [
            f"{page}: {name}"
            for name in named
            if not (ROOT / name).exists() and not (ROOT / page).with_name(Path(name).name).exists()
        ]
    profiles = set(re.findall(r"`(\w[\w-]*)\.json`", (ROOT / "README.md").read_text(encoding="utf-8")))
    shipped = {path.stem for path in (ROOT / "ds_configs").glob("*.json")}
    assert not missing
    assert shipped <= profiles, "the table of profiles names each"
